"""Puts a report together: its rows, the circumstances they were found under, and the notes for its reader."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.choice import MethodChoice
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.by_design import remarks_on
from torch_gradcheck.objective.objective import on_graph, on_overridden, on_spread
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.report import Report
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
    accumulated = any(gradient.accumulated for gradient in gradients.values())
    notes = [
        *problem.on_compiled_code,
        *choice.method.notes(problem, rows),
        on_overridden(objective),
        on_graph(objective, accumulated),
        on_spread(objective),
        on_unproven(rows),
    ]
    return [*choice.notes, *(note for note in notes if note), *remarks_on(objective.model)]


def reported(
    problem: Problem,
    choice: MethodChoice,
    rows: Sequence[ParameterReport],
    *,
    started: float,
    relative_error: float,
    notes: list[str],
    culprit: str | None = None,
) -> Report:
    """The report of a check that ends now.

    Args:
        problem: what was asked.
        choice: the method that the gradients were tried by.
        rows: one for every parameter, in the order of the model.
        started: `time.perf_counter()` at the beginning.
        relative_error: the lecture's, over all of θ.
        notes: in the order they are told.
        culprit: where the mistake is, if that is known.
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
        dtype=str(request.dtype).removeprefix("torch."),
        mode=request.mode,
        seed=request.seed,
        noise=noise.sigma,
        culprit=culprit,
        notes=notes,
    )
