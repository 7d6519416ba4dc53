"""The culprit's name, and sentences on it, from the attributions."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence

from torch import nn
from torch.autograd import Function

from torch_gradcheck.diagnosis.culprit.attribution import Attribution, Lost, LostPath
from torch_gradcheck.diagnosis.culprit.hooks import ChangingHook, hooks_on
from torch_gradcheck.diagnosis.culprit.overwritten import Overwriting
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.watched_backwards import Place
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.reporting.words import LOSS_WORDS, LossWords, listed, noun
from torch_gradcheck.torch_internals.autograd import backward_of, has_hooks
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.custom_ops import custom_op_of, users_function
from torch_gradcheck.torch_internals.modules import forward_of_class, module_at, named_modules, uncompiled

NO_MODULE = "\0"
"""Stands for a culprit that is no module; no module can have this name."""

HOOK_SHARE = 0.1
"""Parameter hooks are at fault if they make up more than 10 % of the error."""

WHOLE = 0.995
"""A share above 99.5 % is all of the error."""

CANCEL = 0.1
"""Parts of an error cancel where their sizes add up to 10 % more than the error."""

IN_FORWARD = (": in its own forward", ": it calls ", ": no gradient arrives ", ": the input of ")
"""How details begin on code of a forward that loses a gradient, where no backward is wrong."""

MOST_NAMES = 4
"""How many modules one sentence names, at most."""


class Sentences:
    """Writes sentences on calls, which it names after the modules of `model`; `loss` is the user's own.

    `words` say what is outside of all modules.
    """

    def __init__(self, model: nn.Module, loss: object = None, words: LossWords = LOSS_WORDS) -> None:
        self._loss, self._words = loss, words
        self._hooks: Sequence[ChangingHook] = ()
        self._names: dict[int, str] = {id(module): name for name, module in reversed(list(named_modules(model)))}
        self._kinds = {name: type(module).__name__ for name, module in named_modules(model)}

    def culprit_of(
        self, attributions: Sequence[Attribution], calls: Sequence[RecordedCall], hooks: Sequence[ChangingHook] = ()
    ) -> tuple[str | None, tuple[str, ...]]:
        """The culprit's name and sentences on it; None and the reason where none can be named.

        Of several, the culprit is the one furthest downstream: gradients pass it first.

        Args:
            attributions: one for each wrong coordinate that was followed.
            calls: of the recorded run.
            hooks: that changed a gradient in it.
        """
        self._hooks = hooks
        sentences: dict[str, str] = {}
        for call, attribution in _downstream_first(attributions, calls):
            inputs = dict.fromkeys(path for each in attributions for path in each.inputs.get(call, []))
            sentences.setdefault(self.name_of(call), self._on(call, attribution, sorted(inputs)))
        for attribution in attributions:
            if not math.isfinite(attribution.hook) or abs(attribution.hook) > HOOK_SHARE * abs(attribution.wrong.error):
                sentences |= self._on_hook(attribution, bool(sentences))
        if not sentences:
            return None, (self._reason(attributions),)
        culprit, *others = sentences
        if culprit == NO_MODULE:
            return None, (sentences[culprit],)
        also = [f"besides, {sentences[other]}" for other in others if other != NO_MODULE]
        return culprit, (sentences[culprit], *also)

    def place_of(self, attributions: Sequence[Attribution], calls: Sequence[RecordedCall]) -> str:
        """Where in the code the culprit's mistake is, to be asked after `culprit_of`; "" where there is no line."""
        found = _downstream_first(attributions, calls)
        if not found:
            return next((hook for each in attributions if (hook := _place_of_hook(each))), "")
        call = found[0][0]
        hooks = self._hooks_in(call)
        if call is None:
            return _placed(f"in {self._words.described}", _at_forward_of(self._loss))
        if not isinstance(call.owner, nn.Module):
            return place_of_backward(call.owner)
        return f"in {hooks[0]}".rstrip(",") if hooks else _place_of_forward(call)

    def place_of_overwriting(self, found: Overwriting) -> str:
        """Where in the code a tensor was overwritten; "" where there is no line."""
        guilty = found.kept.writer if found.kept.seen else found.kept.by
        return "" if guilty is None else _place_of_forward(guilty)

    def name_of(self, call: RecordedCall | None) -> str:
        """The qualified name of the innermost module of the model that contains a call.

        If none does, it is what `LossWords` say, or the innermost Function that they have be named.
        """
        function = ""
        while call is not None:
            call = call.differentiates or call
            name = self._named(call.owner)
            if name is not None:
                return name
            function = function or self._function(call)
            call = call.parent
        return function or self._words.culprit

    def _function(self, call: RecordedCall) -> str:
        """The name of a Function, or the operator it belongs to, where that can be a culprit; else ""."""
        if not self._words.names_functions or isinstance(call.owner, nn.Module):
            return ""
        return function_name(call.owner).rpartition(" ")[2]

    def _named(self, owner: object) -> str | None:
        """The name of a module of the model, also where torch.compile has wrapped it; None of anything else."""
        return self._names.get(id(uncompiled(owner) if isinstance(owner, nn.Module) else owner))

    def order(self, calls: Sequence[RecordedCall]) -> tuple[str, ...]:
        """Names of the model's modules in the order of their first calls."""
        return tuple(dict.fromkeys(self.name_of(call) for call in calls))

    def by_hand(self, also: Sequence[WrongCoordinate]) -> str:
        """The sentence for a given gradient that is wrong; `also`, where autograd's own is, in another way."""
        if not also:
            return "autograd's own gradient is right: the mistake is in the given one"
        one = f"for {also[0].name} it is {also[0].analytic:.6e} instead of {also[0].numeric:.6e}"
        return f"the given gradient is not autograd's own, which is wrong too, in another way: {one}"

    def overwritten(self, found: Overwriting) -> tuple[str | None, tuple[str, ...]]:
        """The culprit's name and the sentence on a tensor that was overwritten before the backward needed it."""
        kept = found.kept
        guilty = kept.writer if kept.seen else kept.by
        what = _kind(guilty) if guilty is not None and not _is_module(guilty) else "it"
        what = what if kept.seen else "something"
        where = f"the mistake is in the {'backward' if kept.backward else 'forward'} of {self._described(guilty)}"
        at = "" if guilty is None else _at_forward_of(guilty.owner)
        by = self._described(kept.by)
        keeper = by if kept.by is None or _is_module(kept.by) else f"{_kind(kept.by)} in {by}"
        mends = "is right" if found.mends else "comes out otherwise"
        sentence = (
            f"{where}{at}: {what} writes past autograd, as .data does, to a tensor that {keeper} keeps for its "
            f"backward; where this is given what was kept, the gradient of {found.wrong.name} {mends}"
        )
        return self.name_of(guilty), (sentence,)

    def disturbed(self) -> tuple[str | None, tuple[str, ...]]:
        """That no culprit can be named where no run that records calls makes the mistake."""
        return None, (
            self.no_culprit("the mistake disappears where the run is recorded, which needs copies of tensors"),
        )

    def no_culprit(self, reason: str) -> str:
        """The sentence that says why no culprit can be named."""
        return f"no culprit can be named: {reason}"

    def cost(self, runs: int, evaluations: int) -> str:
        """The sentence on what the search took: runs of single modules, and evaluations of J."""
        of_modules = f"{runs:,} run{'s' * (runs != 1)} of single modules and " if runs else ""
        of_j = f"{evaluations} evaluation{'s' * (evaluations != 1)} of J"
        return f"looking for the culprit took {of_modules}{of_j}"

    def _on(self, call: RecordedCall | None, attribution: Attribution, inputs: Sequence[str]) -> str:
        double = call is not None and call.differentiates is not None
        detail = self._detail(call, attribution, inputs)
        of = "" if detail.startswith(IN_FORWARD) else f"the {'double ' * double}backward of "
        return f"the mistake is in {of}{self._described(call)}{detail}; {self._share(call, attribution)}"

    def _share(self, call: RecordedCall | None, attribution: Attribution) -> str:
        """The share of the error that the calls of one module make: of the sizes of all parts, which may cancel."""
        name = attribution.wrong.name
        if call in attribution.made_by:
            return f"the backward of {_kind(attribution.made_by[call])} calls it; found by following {name}"
        if call in attribution.repeated:
            all_of_them = [abs(part) for part in attribution.repeated[call]]
            share = (
                f"{all_of_them[0] / sum(all_of_them):.1%} of what all of them add to the error of {name}, signs aside"
            )
            return f"it is called {len(all_of_them)} times, and one of these accounts for {share}"
        parts, error = [abs(part) for part in attribution.parts], abs(attribution.wrong.error)
        if call not in attribution.own or not math.isfinite(sum(parts)):
            return f"found by following {name}"
        here = [abs(own) for other, own in attribution.own.items() if self.name_of(other) == self.name_of(call)]
        cancel = sum(parts) > (1 + CANCEL) * error
        whole = f"the errors that add up to that of {name}, signs aside" if cancel else f"the error of {name}"
        part = sum(here) / sum(parts)
        others = {self.name_of(other) for other in attribution.own} - {self.name_of(call)}
        at_least = "" if part > WHOLE or others else "at least "  # the rest is parts too small to be followed
        return f"it accounts for {at_least}{part:.1%} of {whole}"

    def _described(self, call: RecordedCall | None) -> str:
        name = self.name_of(call)
        is_outside = name not in self._kinds
        return described(name, self._kinds.get(name), self._words) + (_at_forward_of(self._loss) if is_outside else "")

    def _detail(self, call: RecordedCall | None, attribution: Attribution, inputs: Sequence[str]) -> str:
        if call is not None and call in attribution.mutating:
            at = "" if isinstance(call.owner, nn.Module) else at_backward_of(call.owner)
            wrong = f"gives a wrong gradient{_for_inputs(call, inputs)}, and " if call in attribution.own else ""
            return f": {_kind(call)} {wrong}writes to the gradient it is given, which spoils other branches{at}"
        if call is not None and call in attribution.unlike:
            uses = len(attribution.unlike)
            return f": it is used {uses} times, and its backwards give together what they do not give alone"
        if call is not None and not isinstance(call.owner, nn.Module) and not any(call.differentiable):
            return f": the backward of {_kind(call)} never runs, since none of its inputs requires a gradient"
        if call is not None and not isinstance(call.owner, nn.Module):
            again = ", when its backward is differentiated once more," if call.differentiates is not None else ""
            gives = f"{_kind(call)}{again} gives a wrong gradient{_for_inputs(call, inputs)}"
            why = attribution.reasons.get(call, "")
            return f": {gives}{at_backward_of(call.owner)}{f': {why}' if why else ''}"
        if call is not None and self._named(call.owner) is None:
            return f": in {_kind(call)}{_at_forward_of(call.owner)}, which is no module of the model"
        children = [child for child in attribution.tangents if child.parent is call]
        return (
            self._lost(attribution.lost.get(call)) or self._hooked(call) or self._combined(call, children, attribution)
        )

    def _lost(self, path: LostPath | None) -> str:
        """Words on the call whose gradient is lost; "" for none."""
        if path is None:
            return ""
        name = self._short(path.call)
        if path.how is Lost.UNDER_NO_GRAD:
            return f": it calls {name} under no_grad"
        if path.how is Lost.BEHIND:
            return f": no gradient arrives at the output of {name}, though J depends on it (detached?)"
        return f": the input of {name} is detached, though it depends on θ"

    def _hooked(self, call: RecordedCall | None) -> str:
        """Words on the hooks that changed gradients in this call; "" where none did."""
        here = self._hooks_in(call)
        return f": {listed(list(map(str, here)), MOST_NAMES)} changes its gradient" if here else ""

    def _hooks_in(self, call: RecordedCall | None) -> list[ChangingHook]:
        owner = self if call is None else call.owner  # no hook's module is `self`
        return [hook for hook in self._hooks if hook.module is owner or (hook.module is None and hook.call is call)]

    def _combined(self, call: RecordedCall | None, children: Sequence[RecordedCall], attribution: Attribution) -> str:
        names = list(dict.fromkeys(self._short(child) for child in children))
        at = "" if call is None else _at_forward_of(call.owner)
        if not names:
            return f": in its own forward{at}" if at else ""
        innocent = self._innocence(children, attribution)
        return f": in its own forward{at}, which combines {listed(names, MOST_NAMES)}; {innocent}"

    def _innocence(self, children: Sequence[RecordedCall], attribution: Attribution) -> str:
        """Words on the calls that make no error; one that could not be run alone may make it."""
        unclear = next(((call, why) for call, why in attribution.unclear if call in children), None)
        if unclear is None:
            return f"none of them makes the error{' when it is run alone' if attribution.only_alone else ''}"
        call, why = unclear
        return f"{self._short(call)} {why}, so it may make the error; what else could be run alone makes none"

    def _short(self, call: RecordedCall) -> str:
        return self._named(call.owner) or _kind(call)

    def _on_hook(self, attribution: Attribution, others: bool) -> dict[str, str]:
        """The sentence on what changes a gradient after the backward; `others`: calls are wrong, too."""
        entry = attribution.wrong.entry
        parameter, name = entry.parameter, entry.name
        if has_hooks(parameter):
            hook = f"a hook on the {noun([entry.role])} {name}{hooks_on(parameter)}"
            return {name: f"{hook} changes its gradient{'' if others else '; the backward up to there is right'}"}
        return {
            NO_MODULE: self.no_culprit("what .grad holds is not what the backward gave it: it is changed afterwards")
        }

    def _reason(self, attributions: Sequence[Attribution]) -> str:
        for attribution in attributions:
            if attribution.unusable:
                return self.no_culprit(attribution.unusable)
            for call, why in attribution.unclear:
                return self.no_culprit(f"{self._short(call) or 'the model itself'} {why}")
        return self.no_culprit(
            f"every module is right when it is run alone, and so is what is left for {self._words.short}"
        )


def _downstream_first(
    attributions: Sequence[Attribution], calls: Sequence[RecordedCall]
) -> list[tuple[RecordedCall | None, Attribution]]:
    """Calls with a mistake of their own, the last of the run first; the loss function or closure comes before all."""
    position = {call: k for k, call in enumerate(calls)}
    found = [(_at_fault(call, attribution), attribution) for attribution in attributions for call in attribution.own]

    def place(pair: tuple[RecordedCall | None, Attribution]) -> float:
        call = pair[1].made_by.get(pair[0], pair[0])
        return math.inf if call is None else position[call]

    return sorted(found, key=place, reverse=True)


def _at_fault(call: RecordedCall | None, attribution: Attribution) -> RecordedCall | None:
    """The call itself, or one inside of it that is right when run alone and spoils the gradients of others."""
    inside = [each for each in (*attribution.mutating, *attribution.unlike) if call is None or each in call.inside()]
    return inside[0] if inside else call


def described(name: str, kind: str | None, words: LossWords) -> str:
    """A module by its qualified name and class, the model itself or, without a class, what is outside of modules."""
    return words.described if kind is None else f"{name or 'the model itself'} ({kind})"


def described_place(objective: Objective, place: Place) -> str:
    """The module in which a node was made, as `described` has it."""
    kind = None if place.module is None else type(module_at(objective.model, place.module)).__name__
    return described(place.module or "", kind, objective.words)


def _is_module(call: RecordedCall | None) -> bool:
    return call is not None and isinstance(call.owner, nn.Module)


def _kind(call: RecordedCall) -> str:
    if isinstance(call.owner, nn.Module):
        return type(call.owner).__name__
    return function_name(call.owner)


def function_name(function: type[Function]) -> str:
    """A Function, or the operator of torch.library that it belongs to, by name."""
    operator = custom_op_of(function)
    return f"autograd.Function {_written(function).__name__}" if operator is None else f"operator {operator.name}"


def _written(function: type[Function]) -> type[Function]:
    return users_function(function) or function


def at_backward_of(function: type[Function]) -> str:
    """The words ", in its backward at FILE:LINE"; "" where that has no line of the user's."""
    line = at_line_of(backward_of(_written(function)))
    return line and f", in its backward{line}"


def place_of_backward(function: type[Function]) -> str:
    """The words "in the backward of Swish at FILE:LINE"; "" where that has no line of the user's."""
    name = function_name(function).rpartition(" ")[2]
    return _placed(f"in the backward of {name}", at_line_of(backward_of(_written(function))))


def _place_of_forward(call: RecordedCall) -> str:
    return _placed(f"in the forward of {_kind(call).rpartition(' ')[2]}", _at_forward_of(call.owner))


def _place_of_hook(attribution: Attribution) -> str:
    return _placed("in a hook", hooks_on(attribution.wrong.entry.parameter))


def _placed(what: str, line: str) -> str:
    return line and what + line


def _at_forward_of(owner: object) -> str:
    """The words " at FILE:LINE", the line of a module's forward, or of a function."""
    return at_line_of(forward_of_class(owner) if isinstance(owner, nn.Module) else owner)


def _for_inputs(call: RecordedCall, paths: Sequence[str]) -> str:
    """The words " for x, weight": the inputs by their names in the Function's signature; "" for none."""
    names = [input_name(call, path) for path in paths]
    return f" for {', '.join(names)}" if names else ""


def input_name(call: RecordedCall, path: str) -> str:
    """The name of a Function's or operator's input in its signature, such as "x" for the path "[0][0]"."""
    found = re.match(r"\[0\]\[(\d+)\](.*)", path)
    if found is None:
        return path
    position, rest = int(found[1]), found[2]
    assert not isinstance(call.owner, nn.Module)
    if call.differentiates is not None:
        cotangents = len(call.arguments[0]) - len(call.differentiates.arguments[0])
        if position < cotangents:
            return "the gradient that it is given"
        position -= cotangents
    operator = custom_op_of(call.owner)
    if operator is not None:
        return f"{operator.arguments[position]}{rest}"
    function = _written(call.owner)
    signature = list(inspect.signature(function.forward).parameters.values())
    given = signature if "setup_context" in vars(function) else signature[1:]
    for k, parameter in enumerate(given):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return f"{parameter.name}[{position - k}]{rest}"
        if k == position:
            return f"{parameter.name}{rest}"
    return f"input {position}{rest}"
