"""Follows the error of a wrong coordinate through the calls of J, down to those that it arises in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from torch_gradcheck.diagnosis.culprit.attribution import Attribution, Culprit, Suspect
from torch_gradcheck.diagnosis.culprit.compiled import compiler_at_fault
from torch_gradcheck.diagnosis.culprit.counts import meanings_of
from torch_gradcheck.diagnosis.culprit.followed import (
    MOST_FOLLOWED,
    SAME_MISTAKE,
    followed,
    relative_error,
    worst_of,
    wrong_elsewhere,
)
from torch_gradcheck.diagnosis.culprit.footing import Footing, Measures
from torch_gradcheck.diagnosis.culprit.kept_constants import why_wrong
from torch_gradcheck.diagnosis.culprit.lost_paths import lost_path
from torch_gradcheck.diagnosis.culprit.of_slope import named_by_node
from torch_gradcheck.diagnosis.culprit.overwritten import Overwriting, find_overwriting
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.recorded_run import recorded_calls
from torch_gradcheck.diagnosis.culprit.sentences import Sentences
from torch_gradcheck.diagnosis.culprit.shared_calls import SharedCalls
from torch_gradcheck.diagnosis.culprit.single_calls import ERROR_BARS_OFF, CallRunner, Contribution, in_one_line
from torch_gradcheck.diagnosis.culprit.split import Split
from torch_gradcheck.diagnosis.culprit.spoiled_branches import spoiling
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.verdicts.trial import ParameterTrial

ENOUGH_RUNS = 150
"""After so many runs, a mistake that is known is enough: to follow another coordinate would take as many again."""


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
    sentences = Sentences(objective.model, problem.loss_function, objective.words)
    by_hand = problem.request.gradients is not None
    compiled = not by_hand and bool(problem.backward.parts)
    autograd = _of_autograd(problem, gradients)
    wrong = followed(theta, trials, autograd if by_hand or compiled else None)
    by_compiler = _made_by_compiler(problem, trials) if compiled else None
    if by_compiler is not None and not wrong:
        return replace(by_compiler, meanings=meanings_of(recorded_calls(objective)))
    if not wrong:
        also = wrong_elsewhere(theta, trials, autograd, problem.request.tolerance)
        return Culprit(None, (sentences.by_hand(also),), meanings_of(recorded_calls(objective)))
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
        if (each := worst_of(problem.theta, position, trial, None)) is not None
    ]
    own = [
        (position, each)
        for position, each in worst
        if not abs(float(eager[position].values[each.coordinate]) - each.analytic) <= SAME_MISTAKE * abs(each.error)
    ]
    if not own:
        return None
    right = [each for position, each in own if _is_right(eager[position], each)]
    wrong = sorted(right or [each for _, each in own], key=relative_error, reverse=True)
    name, notes = compiler_at_fault(problem, wrong[:MOST_FOLLOWED], eager_is_right=bool(right))
    return Culprit(name, notes)


def _is_right(eager: AnalyticGradient, wrong: WrongCoordinate) -> bool:
    off = abs(float(eager.values[wrong.coordinate]) - wrong.numeric)
    return off <= max(SAME_MISTAKE * abs(wrong.error), ERROR_BARS_OFF * wrong.error_bar)


def _besides(by_compiler: Culprit, found: Culprit) -> Culprit:
    """The compiler's mistake first, then what eager autograd gets wrong, too."""
    first, *others = found.notes
    notes = (*by_compiler.notes, f"besides, eager autograd makes a mistake: {first}", *others)
    return replace(found, name=by_compiler.name, notes=notes, place="")


def _searched(problem: Problem, wrong: Sequence[WrongCoordinate], sentences: Sentences, accumulated: bool) -> Culprit:
    measures = Measures(first_step(problem.noise), problem.hidden_noise, accumulated)
    shared = SharedCalls(problem, wrong, measures)
    objective = problem.objective
    evaluations = objective.evaluations
    footing = Footing(objective, wrong, measures)
    run, runner = footing.run, footing.runner
    if run.full:
        shared.finish()
        return Culprit(None, (sentences.no_culprit("the inputs of all modules together take more than 1 GiB"),))
    overwriting = None if accumulated or not run.disturbing else _overwriting(objective, wrong)
    attributions = _attributions(problem, footing, shared) if overwriting is None and run.same else []
    if not accumulated and not run.disturbing and _combines_functions(attributions, run.calls):
        overwriting = _overwriting(objective, wrong)
    if overwriting is not None:
        name, notes = sentences.overwritten(overwriting)
        place = sentences.place_of_overwriting(overwriting)
    elif run.same:
        name, notes = sentences.culprit_of(attributions, run.calls, run.hooks)
        place = "" if name is None else sentences.place_of(attributions, run.calls)
    else:
        name, notes = sentences.disturbed()
        place = ""
    cost = sentences.cost(runner.runs, objective.evaluations - evaluations)
    shared.finish()
    rounding = next((each for attribution in attributions for each in attribution.roundings), None)
    suspects, functions = _suspects(attributions, run.calls, sentences)
    order = sentences.order(run.calls)
    culprit = Culprit(name, (*notes, cost), meanings_of(run.calls), order, rounding, suspects, functions, place)
    of_functions = any(isinstance(suspect.call.owner, type) for suspect in suspects)
    return culprit if problem.slope is None or of_functions else named_by_node(problem, culprit, wrong[0])


def _suspects(
    attributions: Sequence[Attribution], calls: Sequence[RecordedCall], sentences: Sentences
) -> tuple[tuple[Suspect, ...], tuple[Suspect, ...]]:
    """Calls with a mistake, and those of the same Function or class of module: they are likely to make it, too.

    Then all other calls of Functions.
    """
    wrong = {_code(call) for each in attributions for call in (*each.own, *each.unlike) if call is not None}
    found = [Suspect(k, call, sentences.name_of(call)) for k, call in enumerate(calls)]
    others = [each for each in found if isinstance(each.call.owner, type) and _code(each.call) not in wrong]
    return tuple(each for each in found if _code(each.call) in wrong), tuple(others if wrong else ())


def _code(call: RecordedCall) -> type:
    return type(call.owner) if isinstance(call.owner, nn.Module) else call.owner


def _attributions(problem: Problem, footing: Footing, shared: SharedCalls) -> list[Attribution]:
    """The errors of the coordinates that are followed, attributed to calls: one after the other, while it is cheap."""
    attributions: list[Attribution] = []
    for each, tangents in zip(footing.wrong, footing.tangents, strict=True):
        own = [call for attribution in attributions for call in attribution.own if call not in attribution.made_by]
        attributions.append(_attribution(problem, each, footing, tangents, list(dict.fromkeys(own)), shared))
        if attributions[-1].own and footing.runner.runs > ENOUGH_RUNS:
            break
    return attributions


def _combines_functions(attributions: Sequence[Attribution], calls: Sequence[RecordedCall]) -> bool:
    """Whether a mistake seems to be in what a call does with Functions that are right when each is run alone."""
    own = [call for attribution in attributions for call in attribution.own]
    return any(call.parent in own and isinstance(call.owner, type) for call in calls)


def _overwriting(objective: Objective, wrong: Sequence[WrongCoordinate]) -> Overwriting | None:
    try:
        return find_overwriting(objective, wrong)
    except Exception:  # a transform of torch.func refuses to be looked at in this way
        return None


def _attribution(
    problem: Problem,
    wrong: WrongCoordinate,
    footing: Footing,
    tangents: dict[RecordedCall, Tangents] | None,
    known: Sequence[RecordedCall | None],
    shared: SharedCalls,
) -> Attribution:
    """The error of one coordinate, attributed to calls.

    Args:
        problem: J and θ, the model lent.
        wrong: the coordinate.
        footing: J recorded at θ, and what runs its calls alone.
        tangents: of the calls along the coordinate; None where they are not known.
        known: calls with a mistake that earlier coordinates led to; tried first.
        shared: the ranks that run calls alone.
    """
    run, runner = footing.run, footing.runner
    if tangents is None:
        return Attribution(wrong, unusable="J is made of other calls at neighbouring points")
    attribution = Attribution(wrong, tangents)
    before = run.before_hooks(wrong)
    if math.isfinite(before):
        attribution.hook = wrong.analytic - before
    if not math.isfinite(attribution.hook):
        return attribution  # the gradient was finite before its hooks
    search = Split(attribution, runner, run, shared)
    whole = Contribution(wrong.error - attribution.hook, wrong.error_bar)
    if not search.explained_by(known, whole):
        search.split(None, whole, run.roots)
    search.compare_with_run(before)
    _keep_what_is_at_fault(attribution, problem, runner)
    for call in attribution.own:
        if call in run.calls and isinstance(call.owner, type):
            attribution.inputs[call] = search.wrong_inputs(call)
            attribution.reasons[call] = why_wrong(runner, call, tangents, wrong)
    return attribution


def _keep_what_is_at_fault(attribution: Attribution, problem: Problem, runner: CallRunner) -> None:
    """Keeps of the calls that write to their gradients those that spoil others, and finds the calls that lose one."""
    inside = {each for call in attribution.own if call is not None for each in (call, *call.inside())}
    writing = [call for call in attribution.mutating if None in attribution.own or call in inside]
    attribution.mutating = spoiling(problem, writing, attribution.wrong) if writing else []
    attribution.only_alone = attribution.only_alone or len(attribution.mutating) < len(writing)
    for call in attribution.own:
        if call is None or isinstance(call.owner, nn.Module):
            path = lost_path(problem, runner, call, attribution.tangents, attribution.wrong)
            attribution.lost |= {} if path is None else {call: path}
