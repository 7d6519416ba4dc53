"""Puts a report together: its rows, the circumstances they were found under, and the notes for its reader."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.cleared_grad import on_added
from torch_gradcheck.methods.choice import MethodChoice
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.by_design import remarks_on
from torch_gradcheck.objective.domain import on_domain
from torch_gradcheck.objective.objective import on_graph, on_held, on_overridden, on_replaced, on_spread
from torch_gradcheck.objective.perturbation import infinite_coordinates
from torch_gradcheck.objective.perturbed_theta import on_perturbed
from torch_gradcheck.objective.scripted import on_scripted
from torch_gradcheck.objective.second_order import on_slope
from torch_gradcheck.objective.unseen import on_equal_entries, on_mode, on_silent_units
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import LOSS_WORDS, listed
from torch_gradcheck.torch_internals.autograd import has_post_accumulate_hooks
from torch_gradcheck.verdicts.rows import on_unproven


def notes_of(
    problem: Problem, choice: MethodChoice, rows: Sequence[ParameterReport], gradients: Mapping[int, AnalyticGradient]
) -> list[str]:
    """The notes on the method, on J, and on what was not proven; to be taken while the model is lent.

    Args:
        problem: what was asked.
        choice: the method.
        rows: one for every parameter.
        gradients: those that were tried, by position in θ.
    """
    objective = problem.objective
    accumulated = bool([gradient for gradient in gradients.values() if gradient.accumulated])
    notes = [
        on_perturbed(problem.request.perturb, problem.request.seed),
        on_slope(objective, problem.request.order),
        *problem.on_compiled_code,
        *choice.method.notes(problem, rows),
        on_scripted(objective.model),
        on_overridden(objective),
        on_replaced(objective),
        on_held(objective, problem.request.hold_detached),
        on_graph(objective, accumulated),
        on_added(objective, problem.theta) if accumulated and problem.request.team.size == 1 else "",
        on_spread(objective),
        on_domain(objective.domain),
        problem.on_not_perturbed,
        _on_sleeping_hooks(problem),
        _on_infinite(problem, gradients),
        on_unproven(rows),
        *_on_unseen(problem, rows),
    ]
    return [*choice.notes, *(note for note in notes if note), *remarks_on(objective.model)]


def _on_unseen(problem: Problem, rows: Sequence[ParameterReport]) -> tuple[str, str, str]:
    """What a check at this θ, batch and mode cannot see; "" for what does not apply."""
    model, activity = problem.objective.model, problem.objective.activity
    unused = {name for row in rows if row.status is Status.UNUSED for name in (row.name, *row.aliases)}
    can_move = problem.objective.words is LOSS_WORDS and problem.request.gradients is None
    at_own_theta = can_move and not problem.request.perturb
    advice = " (perturb=0.1 checks away from there)" if at_own_theta else ""
    mode = on_mode(model, activity) if problem.objective.words is LOSS_WORDS else ""  # a function's is as it was
    return mode, on_equal_entries(model, unused, advice), on_silent_units(model, activity)


def _on_infinite(problem: Problem, gradients: Mapping[int, AnalyticGradient]) -> str:
    """The note on entries that cannot be perturbed, and on gradients there that are NaN or infinite; "" without."""
    theta = problem.theta
    infinite = {position: infinite_coordinates(theta[position].parameter) for position in theta.checked}
    infinite = {position: entries for position, entries in infinite.items() if len(entries)}
    if not infinite:
        return ""
    words = [f"{len(entries)} of {theta[position].name}" for position, entries in infinite.items()]
    wrong = [theta[k].name for k, entries in infinite.items() if not np.isfinite(gradients[k].values[entries]).all()]
    spoilt = f"; the gradient there is not finite, for {listed(wrong)}" if wrong else ""
    return f"entries that are NaN or infinite cannot be perturbed and were left out: {listed(words)}{spoilt}"


def _on_sleeping_hooks(problem: Problem) -> str:
    """The note on hooks behind the accumulation of gradients, which step optimizers in the backward; "" without."""
    entries = [problem.theta[position] for position in problem.theta.checked]
    names = [entry.name for entry in entries if has_post_accumulate_hooks(entry.parameter)]
    if not names or problem.request.gradients is not None:
        return ""
    return (
        f"hooks of register_post_accumulate_grad_hook on {listed(names)} did not run in this check. What they make of "
        ".grad is checked by gradients='grad', after a step"
    )


def reported(
    problem: Problem,
    choice: MethodChoice,
    rows: Sequence[ParameterReport],
    *,
    started: float,
    relative_error: float | None,
    notes: list[str],
    culprit: str | None = None,
    place: str = "",
    backward_spread: float = 0.0,
) -> Report:
    """The report of a check that ends now.

    Args:
        problem: what was asked.
        choice: the method that the gradients were tried by.
        rows: one for every parameter, in the order of the model.
        started: `time.perf_counter()` at the beginning.
        relative_error: the lecture's, over all of θ that was decided.
        notes: in the order they are told.
        culprit: where the mistake is, if that is known.
        place: where that is in the code.
        backward_spread: see `Facts`.
    """
    request, noise = problem.request, problem.noise  # measured before evaluations are counted
    return Report(
        parameters=tuple(rows),
        relative_error=relative_error,
        loss=problem.objective.loss,
        method=choice.name,
        evaluations=problem.objective.evaluations,
        seconds=time.perf_counter() - started,
        tolerance=request.tolerance,
        dtype=name_of(request.dtype),
        mode=request.mode,
        seed=request.seed,
        noise=noise.sigma_at_zero,
        culprit=culprit,
        place=place,
        notes=notes,
        backward_spread=backward_spread,
        order=request.order,
        processes=request.team.size,
    )
