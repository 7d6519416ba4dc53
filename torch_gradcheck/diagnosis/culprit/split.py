"""Splits the error of a wrong coordinate: each call's contribution into those of the calls inside and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.attribution import Attribution
from torch_gradcheck.diagnosis.culprit.of_backward import wrong_call_of
from torch_gradcheck.diagnosis.culprit.recorded_call import Owner, RecordedCall
from torch_gradcheck.diagnosis.culprit.recorded_run import Run
from torch_gradcheck.diagnosis.culprit.shared_calls import Found, SharedCalls, contribution_or_reason
from torch_gradcheck.diagnosis.culprit.single_calls import (
    ERROR_BARS_OFF,
    NOTHING,
    OWN_MISTAKE,
    CallRunner,
    CannotBeRunAlone,
    Contribution,
)
from torch_gradcheck.diagnosis.culprit.tangents import Tangents
from torch_gradcheck.objective.nested import tensors_in

ALL_OF_IT = 1e-3
"""What calls lack together is all of an error if both are the same number to 1e-3 of it."""


class Split:
    """Splits the contribution of a call into those of the calls inside of it and the rest, which is its own.

    Args:
        attribution: of the error of one coordinate; what is found is noted there.
        runner: runs calls alone.
        run: J recorded at θ.
        shared: the ranks that run calls alone.
    """

    def __init__(self, attribution: Attribution, runner: CallRunner, run: Run, shared: SharedCalls) -> None:
        self._attribution, self._runner, self._run, self._shared = attribution, runner, run, shared
        self._error = attribution.wrong.error
        self._of_theta: dict[RecordedCall, float] = {}

    def explained_by(self, known: Sequence[RecordedCall | None], whole: Contribution) -> bool:
        """Whether calls known to be wrong explain all of the error, so that no other call need be run."""
        calls = [call for call in known if call is not None]
        if len(calls) < len(known) or not calls or not math.isfinite(whole.error):
            return False
        own = {call: self._own(call) for call in calls}
        contributions = [each for each in own.values() if each is not None]
        if len(contributions) < len(calls) or self._is_mistake(_without(whole, contributions)):
            return False
        self._attribution.own |= {
            call: each.error for call, each in own.items() if each is not None and self._is_mistake(each)
        }
        return True

    def _own(self, call: RecordedCall) -> Contribution | None:
        whole, *inside = self._contributions([call, *call.children])
        return (
            None if whole is None or None in inside else _without(whole, [each for each in inside if each is not None])
        )

    def split(self, call: RecordedCall | None, whole: Contribution | None, children: Sequence[RecordedCall]) -> None:
        """Attributes `whole`, the contribution of `call`: to its children theirs, to the call itself the rest.

        Args:
            call: None is the loss function or closure itself.
            whole: None where it is not known; then nothing is attributed to the call itself.
            children: the calls that `call` made.
        """
        contributions = dict(zip(children, self._contributions(children), strict=True))
        for child, found in contributions.items():
            if found is None or self._is_mistake(found):
                self.split(child, found, child.children)
                self._note_rounding(child, found)
            if found is not None and found.mutates:
                self._attribution.mutating.append(child)
        self._split_repeated(contributions)
        inside = [found for found in contributions.values() if found is not None]
        rest = None if whole is None else _without(whole, inside)
        # A Function that cannot be run alone counts as part of its caller; a module may be right or wrong by itself.
        unclear = [
            child for child, found in contributions.items() if found is None and isinstance(child.owner, nn.Module)
        ]
        if rest is None or not self._is_mistake(rest) or unclear:
            return
        leak = next((each for each in _with_descendants(call, children) if each.leaks), None)
        if leak is None:
            self._note_own(call, rest.error)
        else:
            self._attribution.unclear.append((leak, "lets a graph out by an attribute"))
            if not self._is_mistake(contributions.get(leak, NOTHING) or NOTHING):
                self.split(leak, None, leak.children)

    def _note_own(self, call: RecordedCall | None, error: float) -> None:
        """Notes a call with a mistake of its own; for a Function the wrong call that its backward makes, if any."""
        attribution = self._attribution
        if call is not None and isinstance(call.owner, type):
            inside = wrong_call_of(call, self._run.of_backwards, self._runner, attribution.wrong)
            if inside is not None:
                attribution.made_by[inside] = call
                call = inside
        attribution.own[call] = error

    def _split_repeated(self, contributions: Mapping[RecordedCall, Contribution | None]) -> None:
        """Splits one call of a module called many times, each of which is a little wrong: a mistake all together."""
        calls: dict[Owner, dict[RecordedCall, Contribution]] = {}
        for call, found in contributions.items():
            if found is not None and math.isfinite(found.error) and not self._is_mistake(found):
                calls.setdefault(call.owner, {})[call] = found
        for repeated in calls.values():
            if len(repeated) > 1 and self._is_mistake(_sum(repeated.values())):
                largest = max(repeated, key=lambda call: abs(repeated[call].error))
                others = [found.error for call, found in repeated.items() if call is not largest]
                self._split_one_of(largest, repeated[largest], others)

    def _split_one_of(self, call: RecordedCall, found: Contribution, others: list[float]) -> None:
        """Splits a call, judging what is inside of it by its own contribution instead of E."""
        before, known = self._error, set(self._attribution.own)
        self._error = found.error
        try:
            if self._is_mistake(found):
                self.split(call, found, call.children)
        finally:
            self._error = before
        new = self._attribution.own.keys() - known
        self._attribution.repeated |= {each: [found.error, *others] for each in new}

    def compare_with_run(self, whole: float) -> None:
        """Notes the calls that use the parameter as `unlike`, if the error is what their gradients, run alone, lack.

        Matters where the mistake seems to be that of a call around them, or of the loss. A Function around them gives
        the parameter's gradient itself, and may be wrong where they are right. What uses the parameter besides, such as
        a penalty, a tied layer or a derivative that J takes, adds to its gradient as well: then the error is another
        number than what is missing.

        Args:
            whole: the parameter's gradient in the run, before its hooks.
        """
        parameter, own = self._attribution.wrong.entry.parameter, self._attribution.own
        holders = [call for call in self._attribution.tangents if _holds(call.owner, parameter) and call.receives]
        suspected = [wrong for wrong in own if wrong is None or isinstance(wrong.owner, nn.Module)]
        around = {call for wrong in suspected for call in (holders if wrong is None else wrong.inside())}
        if len(holders) < 2 or around.isdisjoint(holders) or any(map(_is_inside_a_function, holders)):
            return
        for call in holders:
            if call not in self._of_theta:
                self._note_gradient_of_theta(call)
        lacking = whole - sum(self._of_theta.get(call, math.nan) for call in holders)
        if abs(lacking) > OWN_MISTAKE * abs(self._error):
            of_around = sum(own[wrong] for wrong in suspected if wrong is None or _is_around(wrong, holders))
            self._attribution.unlike += holders if self._is_same_error(lacking, of_around) else []
            self._attribution.only_alone = not self._attribution.unlike

    def _is_same_error(self, one: float, other: float) -> bool:
        wrong = self._attribution.wrong
        return abs(one - other) <= max(ALL_OF_IT * abs(self._error), ERROR_BARS_OFF * wrong.error_bar)

    def wrong_inputs(self, call: RecordedCall) -> list[str]:
        """The paths of the inputs whose gradients, each by itself, are wrong."""
        tangents, inputs, parameter = (
            self._attribution.tangents[call],
            call.inputs,
            self._attribution.wrong.entry.parameter,
        )
        moving = [k for k, tangent in enumerate(tangents) if tangent is not None or inputs[k] is parameter]
        of_theta = NOTHING
        if any(each is parameter for each in inputs) or self._of_theta.get(call):
            of_theta = self._contribution(call, [None for _ in tangents]) or NOTHING
        wrong = []
        for path, tensor in tensors_in(call.arguments):
            k = next(k for k, each in enumerate(inputs) if each is tensor)
            if k in moving and self._is_mistake(self._of_input(call, k, of_theta)):
                wrong.append(path)
        return wrong

    def _of_input(self, call: RecordedCall, position: int, of_theta: Contribution) -> Contribution:
        """What the gradient for one input contributes; `of_theta` is the part of the parameter that is followed."""
        tangents = self._attribution.tangents[call]
        if tangents[position] is None:
            return of_theta
        found = self._contribution(call, [t if k == position else None for k, t in enumerate(tangents)])
        return NOTHING if found is None else _without(found, [of_theta])

    def _contribution(self, call: RecordedCall, tangents: Tangents | None = None) -> Contribution | None:
        """The contribution of a call; None, with the reason noted, where it cannot be run alone."""
        along = tangents or self._attribution.tangents[call]
        return self._noted(call, contribution_or_reason(self._runner, call, along, self._attribution.wrong))

    def _contributions(self, calls: Sequence[RecordedCall]) -> list[Contribution | None]:
        """The same of several calls, which ranks that share the check run a part of each."""
        attribution, runner = self._attribution, self._runner

        def own(call: RecordedCall) -> Found:
            return contribution_or_reason(runner, call, attribution.tangents[call], attribution.wrong)

        found = self._shared.contributions(calls, len(self._run.calls), attribution.wrong, runner, own)
        return [self._noted(call, each) for call, each in zip(calls, found, strict=True)]

    def _noted(self, call: RecordedCall, found: Found) -> Contribution | None:
        """The contribution; None where a call cannot be run alone, which is noted."""
        if isinstance(found, CannotBeRunAlone):
            self._attribution.unclear.append((call, str(found)))
            return None
        self._of_theta[call] = found.of_theta
        return found

    def _note_gradient_of_theta(self, call: RecordedCall) -> None:
        """The call's gradient for the wrong coordinate itself, which takes one run; without it where that fails."""
        try:
            self._of_theta[call] = self._runner.gradient_of_theta(call, self._attribution.wrong)
        except CannotBeRunAlone as reason:
            self._attribution.unclear.append((call, str(reason)))

    def _note_rounding(self, call: RecordedCall, contribution: Contribution | None) -> None:
        if call in self._attribution.own and contribution is not None and contribution.rounding is not None:
            self._attribution.roundings.append(contribution.rounding)

    def _is_mistake(self, contribution: Contribution) -> bool:
        """Whether a contribution is a large share of E and more than noise; it is, where not finite."""
        error = contribution.error
        if not math.isfinite(error) or not math.isfinite(self._error):
            return not math.isfinite(error)
        return abs(error) > max(OWN_MISTAKE * abs(self._error), ERROR_BARS_OFF * contribution.error_bar)


def _is_around(call: RecordedCall, holders: Sequence[RecordedCall]) -> bool:
    return not set(call.inside()).isdisjoint(holders)


def _holds(owner: Owner, parameter: torch.Tensor) -> bool:
    return isinstance(owner, nn.Module) and any(held is parameter for held in owner.parameters(recurse=False))


def _is_inside_a_function(call: RecordedCall) -> bool:
    parent = call.parent
    return parent is not None and (isinstance(parent.owner, type) or _is_inside_a_function(parent))


def _sum(contributions: Iterable[Contribution]) -> Contribution:
    """Several contributions as one; error bars add up."""
    errors, error_bars = zip(*((each.error, each.error_bar) for each in contributions), strict=True)
    return Contribution(sum(errors), sum(error_bars))


def _without(whole: Contribution, inside: Sequence[Contribution]) -> Contribution:
    """`whole` without the contributions `inside`; error bars add up.

    A whole that is not finite arose inside if any of `inside` is not finite.
    """
    if not math.isfinite(whole.error):
        return NOTHING if any(not math.isfinite(each.error) for each in inside) else whole
    of_inside = _sum([NOTHING, *inside])
    return Contribution(whole.error - of_inside.error, whole.error_bar + of_inside.error_bar)


def _with_descendants(call: RecordedCall | None, children: Sequence[RecordedCall]) -> Iterator[RecordedCall]:
    if call is not None:
        yield call
    for child in children:
        yield child
        yield from child.inside()
