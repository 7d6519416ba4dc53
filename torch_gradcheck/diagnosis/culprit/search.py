"""Follows the error of a wrong coordinate through the calls that J is made of, down to those it arises in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.argument_copies import tensors_of
from torch_gradcheck.diagnosis.culprit.attribution import Attribution, Blame
from torch_gradcheck.diagnosis.culprit.call_recording import (
    GradientTaps,
    Owner,
    RecordedCall,
    Recording,
    paired_with_recomputed,
)
from torch_gradcheck.diagnosis.culprit.sentences import Sentences
from torch_gradcheck.diagnosis.culprit.single_calls import NOTHING, CallRunner, CannotBeRunAlone, Contribution, said
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate, tangents_of
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, count_meanings
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients, gradients_of
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.torch_internals.autograd import before_hooks
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

LIMIT = 4000
"""How many runs of single modules the search may take."""

TRIED = 3
"""How many wrong coordinates are followed."""

TELLING = 0.1
"""A part of the error this large is a mistake of its own."""

NEGLIGIBLE = 0.02
"""A part this small is none."""

BARS = 3.0
"""How many error bars a part must have to accuse."""


class Run:
    """The real run of J, recorded: calls, gradients that arrived, and gradients of θ before the parameters' hooks.

    Attributes:
        loss: J as it came out; another number than J(θ) where J notices that it is recorded.
        raw: the gradients of each watched parameter before its hooks.
        full: whether the calls took too much memory.
        roots: calls made by the loss function or closure itself.
        calls: all of them, those left out that a backward makes.
    """

    def __init__(
        self, objective: Objective, wrong: Sequence[WrongCoordinate], taps: GradientTaps, accumulated: bool
    ) -> None:
        self._objective, self._accumulated = objective, accumulated
        self.loss = math.nan
        self.raw: dict[torch.Tensor, list[torch.Tensor]] = {}
        with torch.enable_grad(), objective.evaluation(), Recording(taps) as recording:
            self._backward(list(dict.fromkeys(each.entry.parameter for each in wrong)), recording)
        paired_with_recomputed(recording.calls)
        self.full = recording.full
        self.roots = recording.roots
        self.calls = [call for call in recording.calls if not call.in_backward]

    @classmethod
    def of(cls, objective: Objective, wrong: Sequence[WrongCoordinate], accumulated: bool) -> Run:
        """The run that shows most, among those that J bears without noticing.

        Raises:
            RuntimeError: there is none.
        """
        for taps in (GradientTaps(), GradientTaps(inputs=False), GradientTaps(inputs=False, rooted=False)):
            try:
                run = cls(objective, wrong, taps, accumulated)
            except RuntimeError:  # autograd forbids what J does to a tensor that has a graph now
                continue
            if objective.same(run.loss, objective.loss):
                return run
        raise RuntimeError("J is another function when its calls are recorded")

    def _backward(self, watched: list[nn.Parameter], recording: Recording) -> None:
        if watched:
            with before_hooks(watched[0]) as self.raw[watched[0]]:
                self._backward(watched[1:], recording)
            return
        loss = self._objective.compute()
        self.loss = float(loss.detach())
        if self._accumulated or not loss.requires_grad:
            return
        recording.forget_gradients()  # of backwards that the closure has run besides
        for seen in self.raw.values():
            seen.clear()
        theta = [each for each in self._objective.model.parameters() if each.requires_grad]
        gradients_of([loss], [*theta, *recording.leaves])


def find_culprit(
    problem: Problem, trials: Mapping[int, ParameterTrial], gradients: Mapping[int, AnalyticGradient]
) -> Blame:
    """The module in which the gradients that were found wrong go wrong.

    Args:
        problem: J and θ, the model lent.
        trials: every parameter tried, by position; at least one of them is wrong.
        gradients: those on trial, by position.
    """
    objective, theta = problem.objective, problem.theta
    words = Sentences(objective.model)
    by_hand = problem.request.gradients is not None
    autograd = autograd_gradients(objective, theta) if by_hand else gradients
    wrong = _followed(theta, trials, autograd if by_hand else None)
    if not wrong:
        return Blame(None, (words.by_hand(),), _meanings(_seen(objective)))
    accumulated = any(gradient.accumulated for gradient in autograd.values())
    try:
        return _searched(problem, wrong, words, accumulated)
    except Exception as error:  # whatever a watched run raises, the verdict on the gradients stands
        return Blame(None, (words.nobody(f"a run of J in which calls are recorded raises {said(error)}"),))


def _searched(problem: Problem, wrong: Sequence[WrongCoordinate], words: Sentences, accumulated: bool) -> Blame:
    objective = problem.objective
    laboratory = CallRunner(objective, LIMIT)
    evaluations = objective.evaluations
    run = Run.of(objective, wrong, accumulated)
    if run.full:
        return Blame(None, (words.nobody("the inputs of all modules together take more than 1 GiB"),))
    step = first_step(problem.noise)
    verdicts: list[Attribution] = []
    for each in wrong:
        known = list(dict.fromkeys(call for verdict in verdicts for call in verdict.own))
        verdicts.append(_verdict(each, run, laboratory, step, known))
    culprit, notes = words.told(verdicts, run.calls)
    cost = words.cost(laboratory.runs, objective.evaluations - evaluations)
    rounding = next((each for verdict in verdicts for each in verdict.roundings), None)
    return Blame(culprit, (*notes, cost), _meanings(run.calls), words.order(run.calls), rounding)


def _seen(objective: Objective) -> list[RecordedCall]:
    """The calls of an ordinary evaluation of J."""
    with torch.enable_grad(), objective.evaluation(), Recording() as recording:
        objective.compute()
    return recording.calls


def _meanings(calls: Sequence[RecordedCall]) -> tuple[FactorMeaning, ...]:
    """Counts that a factor is often mistaken by: rows of the batch, entries and columns of the output, uses."""
    counts: list[tuple[int, str]] = []
    if calls:
        inputs = [tensor for tensor in tensors_of(calls[0].arguments) if tensor.dim()]
        rows = len(inputs[0]) if inputs else 0
        counts.append((rows, "rows of the batch"))
        for shape, *_ in calls[0].outputs[:1]:
            counts.append((math.prod(shape), "entries of the output"))
            if shape and shape[0] == rows:
                counts.append((math.prod(shape[1:]), "entries of a row of the output"))
    uses = Counter(call.owner for call in calls if isinstance(call.owner, nn.Module) and _parameters_of(call.owner))
    counts += [(count, "uses of a shared module") for count in sorted(set(uses.values()))]
    return tuple(meaning for count, of_what in counts for meaning in count_meanings(count, of_what))


def _followed(
    theta: Theta, trials: Mapping[int, ParameterTrial], autograd: Mapping[int, AnalyticGradient] | None
) -> list[WrongCoordinate]:
    """The worst coordinate of the first, the last and the worst wrong parameter, where autograd is wrong itself."""
    candidates = [
        each
        for position, trial in trials.items()
        if (each := _worst(theta, position, trial, autograd[position] if autograd else None)) is not None
    ]
    by_size = sorted(candidates, key=_badness, reverse=True)
    return list(dict.fromkeys([*by_size[:1], *candidates[:1], *candidates[-1:]]))[:TRIED]


def _badness(wrong: WrongCoordinate) -> float:
    size = abs(wrong.analytic) + abs(wrong.numeric)
    return abs(wrong.error) / size if math.isfinite(wrong.error) else -1.0


def _worst(
    theta: Theta, position: int, trial: ParameterTrial, autograd: AnalyticGradient | None
) -> WrongCoordinate | None:
    results = trial.results
    accused = np.flatnonzero((results.outcome == Outcome.MISMATCH) & np.isfinite(results.numeric))
    if not len(accused):
        return None
    with np.errstate(all="ignore"):
        off = np.abs(trial.analytic[accused] - results.numeric[accused])
    k = int(accused[np.argmax(np.nan_to_num(off, nan=np.inf))])
    coordinate, numeric, noise = int(trial.coordinates[k]), float(results.numeric[k]), float(results.error_bar[k])
    analytic = float(trial.analytic[k])
    if autograd is not None:
        own = float(autograd.values[coordinate])
        if not abs(own - analytic) <= NEGLIGIBLE * abs(analytic - numeric):
            return None
        analytic = own
    entry = theta[position]
    held = WrongCoordinate(entry, coordinate, analytic, numeric, noise, 1.0).of(entry.parameter)
    return WrongCoordinate(entry, coordinate, analytic, numeric, noise, max(1.0, abs(held)))


def _verdict(
    wrong: WrongCoordinate, run: Run, laboratory: CallRunner, step: float, known: Sequence[RecordedCall | None]
) -> Attribution:
    """What is found along one coordinate; `known` are the calls that others have led to."""
    tangents = tangents_of(run.calls, wrong, step * wrong.unit, laboratory.objective)
    if tangents is None:
        return Attribution(wrong, open="J is made of other calls at neighbouring points")
    verdict = Attribution(wrong, tangents)
    raw = [wrong.of(gradient) for gradient in run.raw.get(wrong.entry.parameter, [])]
    if raw and math.isfinite(sum(raw)):
        verdict.hook = wrong.analytic - sum(raw)
    if not math.isfinite(verdict.hook):
        return verdict  # the gradient was a number before its hooks
    search = _Search(verdict, laboratory)
    whole = Contribution(wrong.error - verdict.hook, wrong.noise)
    if not search.explained_by(known, whole):
        search.split(None, whole, run.roots)
    search.compare_with_run(sum(raw))
    for call in verdict.own:
        if call is not None and not isinstance(call.owner, nn.Module):
            verdict.inputs[call] = search.wrong_inputs(call)
    return verdict


class _Search:
    """Splits the part of a call into those of the calls inside of it; what is left is its own."""

    def __init__(self, verdict: Attribution, laboratory: CallRunner) -> None:
        self._verdict, self._laboratory = verdict, laboratory
        self._error = verdict.wrong.error
        self._of_theta: dict[RecordedCall, float] = {}

    def explained_by(self, known: Sequence[RecordedCall | None], whole: Contribution) -> bool:
        """Whether calls known to be wrong make up all of the error, so that there is no need to look further."""
        calls = [call for call in known if call is not None]
        if len(calls) < len(known) or not calls or not math.isfinite(whole.error):
            return False
        own = {call: self._own(call) for call in calls}
        parts = [part for part in own.values() if part is not None]
        if len(parts) < len(calls) or self._tells(_less(whole, parts)):
            return False
        self._verdict.own |= {call: part.error for call, part in own.items() if part is not None and self._tells(part)}
        return True

    def _own(self, call: RecordedCall) -> Contribution | None:
        part, *inside = [self._part(each) for each in (call, *call.children)]
        return None if part is None or None in inside else _less(part, [each for each in inside if each is not None])

    def split(self, call: RecordedCall | None, part: Contribution | None, children: Sequence[RecordedCall]) -> None:
        """Blames the children for their parts, and `call` for what they leave of `part`, if that is known."""
        parts = {child: self._part(child) for child in children}
        for child, found in parts.items():
            if found is None or self._tells(found):
                self.split(child, found, child.children)
                self._note_rounding(child, found)
            if found is not None and found.mutates:
                self._verdict.mutating.append(child)
        rest = None if part is None else _less(part, [found for found in parts.values() if found is not None])
        # A Function that cannot be told about belongs to its caller; a module may be right or wrong.
        unclear = [child for child, found in parts.items() if found is None and isinstance(child.owner, nn.Module)]
        if rest is None or not self._tells(rest) or unclear:
            return
        leak = next((each for each in _family(call, children) if each.leaks), None)
        if leak is None:
            self._verdict.own[call] = rest.error
        else:
            self._verdict.unclear.append((leak, "lets a graph out by an attribute"))
            if not self._tells(parts.get(leak, NOTHING) or NOTHING):
                self.split(leak, None, leak.children)

    def compare_with_run(self, whole: float) -> None:
        """Whether the modules that hold the parameter give it, each call alone, what they gave it together."""
        parameter = self._verdict.wrong.entry.parameter
        holders = [call for call in self._verdict.tangents if _holds(call.owner, parameter) and call.receives]
        if len(holders) < 2:
            return
        for call in holders:
            if call not in self._of_theta:
                self._part(call)
        alone = [self._of_theta.get(call, math.nan) for call in holders]
        if abs(sum(alone) - whole) > TELLING * abs(self._error):
            self._verdict.unlike += holders

    def wrong_inputs(self, call: RecordedCall) -> list[str]:
        """The inputs whose gradients, each by itself, are wrong."""
        tangents, inputs = self._verdict.tangents[call], tensors_of(call.arguments)
        positions = [
            (path, next(k for k, each in enumerate(inputs) if each is tensor))
            for path, tensor in tensors_in(call.arguments)
        ]
        return [
            path
            for path, k in positions
            if tangents[k] is not None
            and (found := self._part(call, [t if j == k else None for j, t in enumerate(tangents)])) is not None
            and self._tells(found)
        ]

    def _part(self, call: RecordedCall, tangents: Tangents | None = None) -> Contribution | None:
        try:
            part = self._laboratory.part(call, tangents or self._verdict.tangents[call], self._verdict.wrong)
        except CannotBeRunAlone as reason:
            self._verdict.unclear.append((call, str(reason)))
            return None
        self._of_theta[call] = part.of_theta
        return part

    def _note_rounding(self, call: RecordedCall, part: Contribution | None) -> None:
        if call in self._verdict.own and part is not None and part.rounding is not None:
            self._verdict.roundings.append(part.rounding)

    def _tells(self, part: Contribution) -> bool:
        if not math.isfinite(part.error) or not math.isfinite(self._error):
            return not math.isfinite(part.error)
        return abs(part.error) > max(TELLING * abs(self._error), BARS * part.noise)


def _holds(owner: Owner, parameter: nn.Parameter) -> bool:
    return isinstance(owner, nn.Module) and any(held is parameter for held in _parameters_of(owner))


def _parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module holds itself."""
    return list(module.parameters(recurse=False))


def _less(part: Contribution, inside: Sequence[Contribution]) -> Contribution:
    """What of `part` is not `inside`; where numbers are not finite, they arose inside if they are not finite there."""
    if not math.isfinite(part.error):
        return NOTHING if any(not math.isfinite(each.error) for each in inside) else part
    error, noise = sum(each.error for each in inside), sum(each.noise for each in inside)
    return Contribution(part.error - error, part.noise + noise)


def _family(call: RecordedCall | None, children: Sequence[RecordedCall]) -> Iterator[RecordedCall]:
    if call is not None:
        yield call
    for child in children:
        yield child
        yield from child.inside()
