"""The culprit by name, and what there is to say about it, in sentences."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence

from torch import nn

from torch_gradcheck.diagnosis.culprit.attribution import Attribution
from torch_gradcheck.diagnosis.culprit.call_recording import RecordedCall
from torch_gradcheck.torch_internals.autograd import has_hooks
from torch_gradcheck.torch_internals.modules import has_backward_hooks

LOSS = "loss_fn"

NOBODY = "\0"
"""No name of a module: what is wrong is no module's fault."""

SHARE = 0.1
"""Parameter hooks are at fault if they make up this much of the error."""

NAMED = 4
"""How many names stand in one sentence."""


class Sentences:
    """Names calls after the modules of `model`."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._kinds = {name: type(module).__name__ for name, module in model.named_modules()}

    def told(
        self, verdicts: Sequence[Attribution], calls: Sequence[RecordedCall]
    ) -> tuple[str | None, tuple[str, ...]]:
        """The culprit, and sentences on it; or None, and the reason."""
        guilty: dict[str, str] = {}
        for call, verdict in _downstream_first(verdicts, calls):
            inputs = dict.fromkeys(path for each in verdicts for path in each.inputs.get(call, []))
            guilty.setdefault(self.name_of(call), self._on(call, verdict, sorted(inputs)))
        for verdict in verdicts:
            if not math.isfinite(verdict.hook) or abs(verdict.hook) > SHARE * abs(verdict.wrong.error):
                guilty |= self._on_hook(verdict)
        if not guilty:
            return None, (self._reason(verdicts),)
        culprit, *others = guilty
        if culprit == NOBODY:
            return None, (guilty[culprit],)
        also = [f"besides, {guilty[other]}" for other in others if other != NOBODY]
        return culprit, (guilty[culprit], *also)

    def name_of(self, call: RecordedCall | None) -> str:
        """The qualified name of the innermost module of the model that a call is part of; `loss_fn` outside of all."""
        while call is not None:
            if id(call.owner) in self._names:
                return self._names[id(call.owner)]
            call = call.parent
        return LOSS

    def order(self, calls: Sequence[RecordedCall]) -> tuple[str, ...]:
        """Names of the model's modules in the order of their first calls."""
        return tuple(dict.fromkeys(self.name_of(call) for call in calls))

    def by_hand(self) -> str:
        """Autograd's own gradient is right where the given one is wrong."""
        return self.nobody("autograd's own gradient is right, or wrong in another way: the given gradient is at fault")

    def nobody(self, reason: str) -> str:
        """Why there is no culprit."""
        return f"no culprit can be named: {reason}"

    def cost(self, runs: int, evaluations: int) -> str:
        """What the search took."""
        return f"looking for the culprit took {runs:,} runs of single modules and {evaluations} evaluations of J"

    def _on(self, call: RecordedCall | None, verdict: Attribution, inputs: Sequence[str]) -> str:
        where = f"the mistake is in the backward of {self._described(call)}"
        return f"{where}{self._detail(call, verdict, inputs)}; {_share(call, verdict)}"

    def _described(self, call: RecordedCall | None) -> str:
        name = self.name_of(call)
        if name == LOSS:
            return "the loss function or closure"
        return f"{name or 'the model itself'} ({self._kinds[name]})"

    def _detail(self, call: RecordedCall | None, verdict: Attribution, inputs: Sequence[str]) -> str:
        if call is not None and call in verdict.mutating:
            return f": {_kind(call)} writes to the gradient it is given, which spoils other branches"
        if call is not None and call in verdict.unlike:
            uses = len(verdict.unlike)
            return f": it is used {uses} times, and its backwards do not give what each of them gives alone"
        if call is not None and not isinstance(call.owner, nn.Module):
            return f": {_kind(call)} gives a wrong gradient{_for_inputs(call, inputs)}"
        if call is not None and id(call.owner) not in self._names:
            return f": in {_kind(call)}, which is no module of the model"
        children = [child for child in verdict.tangents if child.parent is call]
        return self._cut(call, children, verdict) or _hooked(call) or self._combined(children)

    def _cut(self, call: RecordedCall | None, children: Sequence[RecordedCall], verdict: Attribution) -> str:
        """Where a graph is seen to be cut between the calls that it makes."""
        here = call is None or call.grad_enabled
        for child in children:
            name = self._short(child)
            if here and not child.grad_enabled:
                return f": it calls {name} under no_grad"
            if child.cotangents and not child.receives and child.grad_enabled and _moves(child, verdict):
                return f": no gradient arrives for what {name} puts out, though J depends on it (detached?)"
        for child in children:
            moving = zip(verdict.tangents[child], child.differentiable, strict=True)
            if child.grad_enabled and any(tangent is not None and not asked for tangent, asked in moving):
                return f": the input of {self._short(child)} is detached, though it depends on θ"
        return ""

    def _combined(self, children: Sequence[RecordedCall]) -> str:
        names = list(dict.fromkeys(self._short(child) for child in children))
        if not names:
            return ""
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f": in its own forward, which combines {', '.join(names[:NAMED])}{more}; each of them is right"

    def _short(self, call: RecordedCall) -> str:
        return self._names.get(id(call.owner), "") or _kind(call)

    def _on_hook(self, verdict: Attribution) -> dict[str, str]:
        parameter, name = verdict.wrong.entry.parameter, verdict.wrong.entry.name
        if has_hooks(parameter):
            return {name: f"a hook on the parameter {name} changes its gradient; the backward up to there is right"}
        return {NOBODY: self.nobody("what .grad holds is not what the backward gave it: it is changed afterwards")}

    def _reason(self, verdicts: Sequence[Attribution]) -> str:
        for verdict in verdicts:
            if verdict.open:
                return self.nobody(verdict.open)
            for call, why in verdict.unclear:
                return self.nobody(f"{self._short(call) or 'the model itself'} {why}")
        return self.nobody("every module is right when it is run alone, and so is what is left for the loss")


def _downstream_first(
    verdicts: Sequence[Attribution], calls: Sequence[RecordedCall]
) -> list[tuple[RecordedCall | None, Attribution]]:
    """The calls with mistakes of their own; the loss comes last in a run and so first here."""
    position = {call: k for k, call in enumerate(calls)}
    found = [(_blamed(call, verdict), verdict) for verdict in verdicts for call in verdict.own]
    return sorted(found, key=lambda pair: math.inf if pair[0] is None else position[pair[0]], reverse=True)


def _blamed(call: RecordedCall | None, verdict: Attribution) -> RecordedCall | None:
    """The call itself, or one inside of it that is right alone and spoils gradients in company."""
    inside = [each for each in (*verdict.mutating, *verdict.unlike) if call is None or each in call.inside()]
    return inside[0] if inside else call


def _share(call: RecordedCall | None, verdict: Attribution) -> str:
    own, error = verdict.own.get(call), verdict.wrong.error
    if own is None or not math.isfinite(own) or not math.isfinite(error):
        return f"found by following {verdict.wrong.name}"
    return f"it accounts for {own / error:.1%} of the error of {verdict.wrong.name}"


def _kind(call: RecordedCall) -> str:
    if isinstance(call.owner, nn.Module):
        return type(call.owner).__name__
    return f"autograd.Function {call.owner.__name__}"


def _moves(call: RecordedCall, verdict: Attribution) -> bool:
    return any(tangent is not None for tangent in verdict.tangents[call]) or bool(
        isinstance(call.owner, nn.Module)
        and any(parameter is verdict.wrong.entry.parameter for parameter in call.owner.parameters())
    )


def _hooked(call: RecordedCall | None) -> str:
    owner = None if call is None else call.owner
    if isinstance(owner, nn.Module) and has_backward_hooks(owner):
        return ": it has a backward hook, which changes gradients"
    return ""


def _for_inputs(call: RecordedCall, paths: Sequence[str]) -> str:
    """The inputs in the words of the Function's own signature."""
    names = [_input_name(call, path) for path in paths]
    return f" for {', '.join(names)}" if names else ""


def _input_name(call: RecordedCall, path: str) -> str:
    found = re.match(r"\[0\]\[(\d+)\](.*)", path)
    if found is None:
        return path
    position, rest = int(found[1]), found[2]
    assert not isinstance(call.owner, nn.Module)
    signature = list(inspect.signature(call.owner.forward).parameters.values())
    given = signature if "setup_context" in vars(call.owner) else signature[1:]
    for k, parameter in enumerate(given):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return f"{parameter.name}[{position - k}]{rest}"
        if k == position:
            return f"{parameter.name}{rest}"
    return f"input {position}{rest}"
