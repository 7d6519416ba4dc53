"""The exact method: a centered difference at every coordinate, as in the lecture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch_gradcheck.differences.noise import SIGMAS, Noise
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.engines.selection import on_refusals, whom
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.coordinates import Coordinates
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.verdicts.judge import judge_gradient
from torch_gradcheck.verdicts.trial import ParameterTrial

LECTURE_EPS = 1e-7
"""The step of Andrew Ng's lecture."""

WIDE = 1e-4
"""A relative step above this was chosen because the gradient is small. It is tried first on the next parameter, whose
gradient is often small as well."""


def exact_trials(
    problem: Problem, gradients: Mapping[int, AnalyticGradient], progress: ProgressBar
) -> dict[int, ParameterTrial]:
    """Every checked parameter's gradient against centered differences at all its coordinates, by position in θ."""
    theta, objective = problem.theta, problem.objective
    coordinates = Coordinates(problem, progress)
    progress.start(2 * theta.coordinates, "")
    trials: dict[int, ParameterTrial] = {}
    previous_stencil: Stencil | None = None
    for position in theta.checked:
        progress.at(theta[position].name)
        started, before = time.perf_counter(), objective.evaluations
        on_trial = theta[position].coordinates_on_trial
        check = coordinates.entry_check(position, on_trial, gradients[position])
        results = judge_gradient(check, previous_stencil)
        if results.stencil.step > WIDE:
            previous_stencil = results.stencil
        trials[position] = ParameterTrial(
            on_trial,
            check.analytic,
            gradients[position].reached,
            results,
            evaluations=objective.evaluations - before,
            seconds=time.perf_counter() - started,
        )
    return trials


def exact_notes(problem: Problem, rows: Sequence[ParameterReport]) -> list[str]:
    """The notes on the step of the differences, and on parameters evaluated one coordinate at a time; "" for none."""
    refused = problem.refused
    return [_on_step(problem, rows), on_refusals(refused, problem.model, whom(refused, rows))]


def _on_step(problem: Problem, rows: Sequence[ParameterReport]) -> str:
    steps = sorted({row.eps for row in rows if row.checked})
    if not steps:
        return ""
    noise, eps = problem.noise, problem.request.eps
    if eps is None:
        listed = f"{steps[0]:.1e}" if len(steps) == 1 else f"{steps[0]:.1e} to {steps[-1]:.1e}"
        return (
            f"eps = {listed} · max(1, |θ|) instead of the lecture's 1e-07: J has noise {noise.sigma:.0e}, "
            f"which would put {_error_bar(noise, LECTURE_EPS):.0e} on every derivative there"
        )
    tolerance = problem.request.tolerance
    drowned = [row for row in rows if row.checked and _error_bar(noise, eps) > tolerance * _largest_worst(row)]
    if not drowned:
        return ""
    return (
        f"eps = {eps:g} drowns in noise for {len(drowned)} of {len(rows)} parameters: J has noise "
        f"{noise.sigma:.0e}, which puts {_error_bar(noise, eps):.0e} on every derivative; leave eps out"
    )


def _error_bar(noise: Noise, step: float) -> float:
    """The error bar that the noise of J gives a centered difference of this step."""
    return SIGMAS * max(noise.sigma, noise.epsilon / 2 * abs(noise.at_zero)) / step


def _largest_worst(row: ParameterReport) -> float:
    """The largest derivative among the worst coordinates of a row."""
    return max((abs(coordinate.numeric) for coordinate in row.worst), default=0.0)
