"""Follows the error of a wrong coordinate through the calls of J, down to those that it arises in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.attribution import Attribution, Culprit, Suspect
from torch_gradcheck.diagnosis.culprit.call_recording import (
    NO_TAPS,
    GradientTaps,
    Owner,
    RecordedCall,
    Recording,
    paired_with_recomputed,
)
from torch_gradcheck.diagnosis.culprit.compiled import compiler_at_fault
from torch_gradcheck.diagnosis.culprit.hooks import HookWatch
from torch_gradcheck.diagnosis.culprit.sentences import Sentences
from torch_gradcheck.diagnosis.culprit.single_calls import (
    NOTHING,
    CallRunner,
    CannotBeRunAlone,
    Contribution,
    in_one_line,
)
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

MOST_RUNS = 4000
"""How many runs of single modules the search may take."""

ENOUGH_RUNS = 150
"""After so many runs, a mistake that is known is enough: to follow another coordinate would take as many again."""

MOST_FOLLOWED = 3
"""How many wrong coordinates are followed, at most."""

OWN_MISTAKE = 0.1
"""A contribution above 10 % of E is a mistake of the call."""

SAME_MISTAKE = 0.02
"""Two gradients that differ by at most 2 % of E have the same mistake."""

ERROR_BARS_OFF = 3.0
"""A contribution of at most 3 error bars is no mistake."""


class Run:
    """One recorded run of J and its backward.

    Attributes:
        loss: J in this run; differs from J(θ) where recording changes J.
        raw: the gradients of each wrong parameter before its hooks, in the order in which they arrived.
        full: whether the calls took too much memory to be recorded.
        roots: calls made by the loss function or closure itself.
        calls: all calls but those made by a backward.
        hooks: that changed a gradient.
    """

    def __init__(
        self, objective: Objective, wrong: Sequence[WrongCoordinate], taps: GradientTaps, accumulated: bool
    ) -> None:
        self._objective, self._accumulated = objective, accumulated
        self.loss = math.nan
        self.raw: dict[torch.Tensor, list[torch.Tensor]] = {}
        with (
            torch.enable_grad(),
            objective.evaluation(at_theta=True),
            _recording(objective, taps) as recording,
            HookWatch(objective.model, recording.running) as watch,
        ):
            self._backward(list(dict.fromkeys(each.entry.parameter for each in wrong)), recording)
        paired_with_recomputed(recording.calls)
        self.full = recording.full
        self.roots = recording.roots
        self.calls = [call for call in recording.calls if not call.in_backward]
        self.hooks = watch.changing

    @classmethod
    def of(cls, objective: Objective, wrong: Sequence[WrongCoordinate], accumulated: bool) -> Run:
        """The run with the most gradient taps, among those that leave J as it is.

        Raises:
            RuntimeError: every way to record calls changes J.
        """
        for taps in (GradientTaps(), GradientTaps(inputs=False), GradientTaps(inputs=False, rooted=False)):
            try:
                run = cls(objective, wrong, taps, accumulated)
            except RuntimeError:  # J does to a tapped tensor what autograd forbids for one with a graph
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
        recording.forget_gradients()  # of backwards that the closure ran itself
        for gradients in self.raw.values():
            gradients.clear()
        theta = [each for each in self._objective.model.parameters() if each.requires_grad]
        gradients_of([loss], [*theta, *recording.leaves])


def find_culprit(
    problem: Problem, trials: Mapping[int, ParameterTrial], gradients: Mapping[int, AnalyticGradient]
) -> Culprit:
    """The module in which the wrong gradients go wrong.

    Args:
        problem: J and θ, the model lent.
        trials: the trial of every checked parameter, by position; at least one has a mismatch.
        gradients: the gradients on trial, by position.
    """
    objective, theta = problem.objective, problem.theta
    sentences = Sentences(objective.model, problem.loss_function)
    by_hand = problem.request.gradients is not None
    compiled = not by_hand and bool(problem.backward.parts)
    autograd = _of_autograd(problem, gradients)
    wrong = _followed(theta, trials, autograd if by_hand or compiled else None)
    by_compiler = _made_by_compiler(problem, trials) if compiled else None
    if by_compiler is not None and not wrong:
        return replace(by_compiler, meanings=_meanings(_recorded_calls(objective)))
    if not wrong:
        return Culprit(None, (sentences.by_hand(),), _meanings(_recorded_calls(objective)))
    accumulated = any(gradient.accumulated for gradient in autograd.values())
    try:
        found = _searched(problem, wrong, sentences, accumulated)
        return found if by_compiler is None else _besides(by_compiler, found)
    except Exception as error:  # whatever a recorded run raises, the verdict on the gradients stands
        reason = f"a run of J in which calls are recorded raises {in_one_line(error)}"
        return Culprit(None, (sentences.no_culprit(reason),))


def _of_autograd(problem: Problem, gradients: Mapping[int, AnalyticGradient]) -> Mapping[int, AnalyticGradient]:
    """Eager autograd's gradients, by position in θ; `gradients` are those on trial."""
    if problem.request.gradients is not None:
        return autograd_gradients(problem.objective, problem.theta, at_theta=True)
    return problem.backward.eager if problem.backward.parts else gradients


def _made_by_compiler(problem: Problem, trials: Mapping[int, ParameterTrial]) -> Culprit | None:
    """The compiler as the culprit; None where eager autograd makes every mistake as well."""
    eager = problem.backward.eager
    worst = [
        (position, each)
        for position, trial in trials.items()
        if (each := _worst(problem.theta, position, trial, None)) is not None
    ]
    own = [
        (position, each)
        for position, each in worst
        if not abs(float(eager[position].values[each.coordinate]) - each.analytic) <= SAME_MISTAKE * abs(each.error)
    ]
    if not own:
        return None
    right = [each for position, each in own if _is_right(eager[position], each)]
    wrong = sorted(right or [each for _, each in own], key=_relative_error, reverse=True)
    name, notes = compiler_at_fault(problem, wrong[:MOST_FOLLOWED], eager_is_right=bool(right))
    return Culprit(name, notes)


def _is_right(eager: AnalyticGradient, wrong: WrongCoordinate) -> bool:
    off = abs(float(eager.values[wrong.coordinate]) - wrong.numeric)
    return off <= max(SAME_MISTAKE * abs(wrong.error), ERROR_BARS_OFF * wrong.error_bar)


def _besides(by_compiler: Culprit, found: Culprit) -> Culprit:
    """The compiler's mistake first, then what eager autograd gets wrong, too."""
    first, *others = found.notes
    notes = (*by_compiler.notes, f"besides, eager autograd makes a mistake: {first}", *others)
    return replace(found, name=by_compiler.name, notes=notes)


def _searched(problem: Problem, wrong: Sequence[WrongCoordinate], sentences: Sentences, accumulated: bool) -> Culprit:
    objective = problem.objective
    runner = CallRunner(objective, wrong, MOST_RUNS, problem.hidden_noise)
    evaluations = objective.evaluations
    run = Run.of(objective, wrong, accumulated)
    if run.full:
        return Culprit(None, (sentences.no_culprit("the inputs of all modules together take more than 1 GiB"),))
    step = first_step(problem.noise)
    attributions: list[Attribution] = []
    for each in wrong:
        known = list(dict.fromkeys(call for attribution in attributions for call in attribution.own))
        attributions.append(_attribution(each, run, runner, step, known))
        if attributions[-1].own and runner.runs > ENOUGH_RUNS:
            break
    name, notes = sentences.culprit_of(attributions, run.calls, run.hooks)
    cost = sentences.cost(runner.runs, objective.evaluations - evaluations)
    rounding = next((each for attribution in attributions for each in attribution.roundings), None)
    suspects = _suspects(attributions, run.calls, sentences)
    return Culprit(name, (*notes, cost), _meanings(run.calls), sentences.order(run.calls), rounding, suspects)


def _suspects(
    attributions: Sequence[Attribution], calls: Sequence[RecordedCall], sentences: Sentences
) -> tuple[Suspect, ...]:
    """Calls with a mistake, and those of the same Function or class of module: they are likely to make it, too."""
    wrong = {_code(call) for each in attributions for call in (*each.own, *each.unlike) if call is not None}
    alike = [(k, call) for k, call in enumerate(calls) if _code(call) in wrong]
    return tuple(Suspect(k, call, sentences.name_of(call)) for k, call in alike)


def _code(call: RecordedCall) -> type:
    return type(call.owner) if isinstance(call.owner, nn.Module) else call.owner


def _recorded_calls(objective: Objective) -> list[RecordedCall]:
    """The calls of one evaluation of J, without gradients."""
    with torch.enable_grad(), objective.evaluation(at_theta=True), _recording(objective) as recording:
        objective.compute()
    return recording.calls


def _recording(objective: Objective, taps: GradientTaps = NO_TAPS) -> Recording:
    return Recording(lambda: objective.random_state, taps)


def _meanings(calls: Sequence[RecordedCall]) -> tuple[FactorMeaning, ...]:
    """Counts that gradients are often off by: rows of the batch, entries of the output and of its rows, shared uses.

    The batch is what the first call that is given a tensor is given.
    """
    counts: list[tuple[int, str]] = []
    first = next((call for call in calls if any(tensor.dim() for tensor in call.inputs)), None)
    if first is not None:
        lengths = [len(tensor) for tensor in first.inputs if tensor.dim()]
        out = next((shape for shape, *_ in first.outputs if shape), ())
        rows = out[0] if out and out[0] in lengths else lengths[0]  # weights may come before the batch
        counts.append((rows, "rows of the batch"))
        counts += [(math.prod(shape), "entries of the output") for shape, *_ in first.outputs[:1]]
        if out and out[0] == rows:
            counts.append((math.prod(out[1:]), "entries of a row of the output"))
    uses = Counter(call.owner for call in calls if isinstance(call.owner, nn.Module) and _parameters_of(call.owner))
    counts += [(count, "uses of a shared module") for count in sorted(set(uses.values()))]
    return tuple(meaning for count, of_what in counts for meaning in count_meanings(count, of_what))


def _followed(
    theta: Theta, trials: Mapping[int, ParameterTrial], autograd: Mapping[int, AnalyticGradient] | None
) -> list[WrongCoordinate]:
    """The worst coordinate each of the worst, the first and the last wrong parameter.

    Given gradients count only where autograd's own gradient (`autograd`) has the same mistake.
    """
    candidates = [
        each
        for position, trial in trials.items()
        if (each := _worst(theta, position, trial, autograd[position] if autograd else None)) is not None
    ]
    by_size = sorted(candidates, key=_relative_error, reverse=True)
    return list(dict.fromkeys([*by_size[:1], *candidates[:1], *candidates[-1:]]))[:MOST_FOLLOWED]


def _relative_error(wrong: WrongCoordinate) -> float:
    size = abs(wrong.analytic) + abs(wrong.numeric)
    return abs(wrong.error) / size if math.isfinite(wrong.error) else -1.0


def _worst(
    theta: Theta, position: int, trial: ParameterTrial, autograd: AnalyticGradient | None
) -> WrongCoordinate | None:
    results = trial.results
    mismatched = np.flatnonzero((results.outcome == Outcome.MISMATCH) & np.isfinite(results.numeric))
    if not len(mismatched):
        return None
    with np.errstate(all="ignore"):
        off = np.abs(trial.analytic[mismatched] - results.numeric[mismatched])
    k = int(mismatched[np.argmax(np.nan_to_num(off, nan=np.inf))])
    coordinate, error_bar = int(trial.coordinates[k]), float(results.error_bar[k])
    analytic, numeric = float(trial.analytic[k]), float(results.numeric[k])
    if autograd is not None:
        own = float(autograd.values[coordinate])
        if not abs(own - analytic) <= SAME_MISTAKE * abs(analytic - numeric):
            return None
        analytic = own
    entry = theta[position]
    value = WrongCoordinate(entry, coordinate, analytic, numeric, error_bar, 1.0).of(entry.parameter)
    return WrongCoordinate(entry, coordinate, analytic, numeric, error_bar, max(1.0, abs(value)))


def _attribution(
    wrong: WrongCoordinate, run: Run, runner: CallRunner, step: float, known: Sequence[RecordedCall | None]
) -> Attribution:
    """The error of one coordinate, attributed to calls.

    Args:
        wrong: the coordinate.
        run: J recorded at θ.
        runner: runs calls alone.
        step: relative step of the tangents.
        known: calls with a mistake that earlier coordinates led to; tried first.
    """
    tangents = tangents_of(run.calls, wrong, step * wrong.unit, runner.objective)
    if tangents is None:
        return Attribution(wrong, unusable="J is made of other calls at neighbouring points")
    attribution = Attribution(wrong, tangents)
    raw = [wrong.of(gradient) for gradient in run.raw.get(wrong.entry.parameter, [])]
    if raw and math.isfinite(sum(raw)):
        attribution.hook = wrong.analytic - sum(raw)
    if not math.isfinite(attribution.hook):
        return attribution  # the gradient was finite before its hooks
    search = _Search(attribution, runner)
    whole = Contribution(wrong.error - attribution.hook, wrong.error_bar)
    if not search.explained_by(known, whole):
        search.split(None, whole, run.roots)
    search.compare_with_run(sum(raw))
    for call in attribution.own:
        if call is not None and not isinstance(call.owner, nn.Module):
            attribution.inputs[call] = search.wrong_inputs(call)
    return attribution


class _Search:
    """Splits the contribution of a call into those of the calls inside of it and the rest, which is its own."""

    def __init__(self, attribution: Attribution, runner: CallRunner) -> None:
        self._attribution, self._runner = attribution, runner
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
        whole, *inside = [self._contribution(each) for each in (call, *call.children)]
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
        contributions = {child: self._contribution(child) for child in children}
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
            self._attribution.own[call] = rest.error
        else:
            self._attribution.unclear.append((leak, "lets a graph out by an attribute"))
            if not self._is_mistake(contributions.get(leak, NOTHING) or NOTHING):
                self.split(leak, None, leak.children)

    def _split_repeated(self, contributions: Mapping[RecordedCall, Contribution | None]) -> None:
        """Splits one call of a module called many times, each of which is a little wrong: a mistake all together."""
        calls: dict[Owner, dict[RecordedCall, Contribution]] = {}
        for call, found in contributions.items():
            if found is not None and math.isfinite(found.error) and not self._is_mistake(found):
                calls.setdefault(call.owner, {})[call] = found
        for repeated in calls.values():
            if len(repeated) > 1 and self._is_mistake(_sum(repeated.values())):
                largest = max(repeated, key=lambda call: abs(repeated[call].error))
                self._split_one_of(len(repeated), largest, repeated[largest])

    def _split_one_of(self, count: int, call: RecordedCall, found: Contribution) -> None:
        """Splits a call, judging what is inside of it by its own contribution instead of E."""
        before, known = self._error, set(self._attribution.own)
        self._error = found.error
        try:
            if self._is_mistake(found):
                self.split(call, found, call.children)
        finally:
            self._error = before
        self._attribution.repeated |= dict.fromkeys(self._attribution.own.keys() - known, count)

    def compare_with_run(self, whole: float) -> None:
        """Notes the calls that use the parameter as `unlike`, if their gradients for it, run alone, do not add up.

        Matters where the mistake seems to be that of a call around them, or of the loss.

        Args:
            whole: the parameter's gradient in the run, before its hooks.
        """
        parameter, own = self._attribution.wrong.entry.parameter, self._attribution.own
        holders = [call for call in self._attribution.tangents if _holds(call.owner, parameter) and call.receives]
        around = {call for wrong in own for call in (holders if wrong is None else wrong.inside())}
        if len(holders) < 2 or around.isdisjoint(holders):
            return
        for call in holders:
            if call not in self._of_theta:
                self._note_gradient_of_theta(call)
        alone = [self._of_theta.get(call, math.nan) for call in holders]
        if abs(sum(alone) - whole) > OWN_MISTAKE * abs(self._error):
            self._attribution.unlike += holders

    def wrong_inputs(self, call: RecordedCall) -> list[str]:
        """The paths of the inputs whose gradients, each by itself, are wrong."""
        tangents, inputs = self._attribution.tangents[call], call.inputs
        positions = [
            (path, next(k for k, each in enumerate(inputs) if each is tensor))
            for path, tensor in tensors_in(call.arguments)
        ]
        return [
            path
            for path, k in positions
            if tangents[k] is not None
            and (found := self._contribution(call, [t if j == k else None for j, t in enumerate(tangents)])) is not None
            and self._is_mistake(found)
        ]

    def _contribution(self, call: RecordedCall, tangents: Tangents | None = None) -> Contribution | None:
        """The contribution of a call; None, with the reason noted, where it cannot be run alone."""
        along, wrong = tangents or self._attribution.tangents[call], self._attribution.wrong
        try:
            contribution = self._runner.contribution(call, along, wrong)
        except CannotBeRunAlone as reason:
            self._attribution.unclear.append((call, str(reason)))
            return None
        self._of_theta[call] = contribution.of_theta
        return contribution

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


def _holds(owner: Owner, parameter: nn.Parameter) -> bool:
    return isinstance(owner, nn.Module) and any(held is parameter for held in _parameters_of(owner))


def _parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module holds itself."""
    return list(module.parameters(recurse=False))


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
