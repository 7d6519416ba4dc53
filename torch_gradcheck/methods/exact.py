"""The exact method: a centered difference at every coordinate, as in the lecture."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.engines.selection import on_refusals, whom
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.contradiction import Contradiction, Wrong
from torch_gradcheck.methods.coordinates import Coordinates
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.reporting.words import counted, listed
from torch_gradcheck.verdicts.judge import BATCH, judge_suspects, mark_wrong
from torch_gradcheck.verdicts.measurement import Measurement, better_measured, measured
from torch_gradcheck.verdicts.trial import ParameterTrial

LECTURE_EPS = 1e-7
"""The step of Andrew Ng's lecture."""

FEW = 2
"""How many entries of a tensor are looked at first where other tensors are wrong beyond doubt: it is expected to be."""

WIDE = 1e-4
"""A relative step above this was chosen because the gradient is small. It is tried first on the next parameter, whose
gradient is often small as well."""


def exact_trials(
    problem: Problem, gradients: Mapping[int, AnalyticGradient], progress: ProgressBar
) -> dict[int, ParameterTrial]:
    """Every checked parameter's gradient against centered differences at all its coordinates, by position in θ."""
    return Exact(problem, gradients, progress).trials()


class Exact:
    """Tries gradients at every coordinate: first all differences, then what disagrees, of all tensors at once.

    Args:
        problem: J, θ and the options.
        gradients: the gradients on trial, by position in θ.
        progress: advanced at every evaluation.
    """

    def __init__(self, problem: Problem, gradients: Mapping[int, AnalyticGradient], progress: ProgressBar) -> None:
        self._problem, self._theta, self._gradients = problem, problem.theta, gradients
        self._progress = progress
        self._coordinates = Coordinates(problem, progress)
        self._costs = {position: Cost() for position in self._theta.checked}

    def trials(self) -> dict[int, ParameterTrial]:
        """The trial of every checked parameter, by position, in the order of θ."""
        self._progress.start(2 * self._theta.coordinates, "")
        measurements = self._measured()
        contradiction = Contradiction(self._problem, self._coordinates, self._progress)
        wrong = contradiction.found(_suspected(measurements))
        again = self._better_measured({p: m for p, m in _suspected(measurements).items() if p not in wrong})
        wrong |= contradiction.found(_suspected(again))
        measurements |= again
        batch = FEW if wrong else BATCH
        return {p: self._trial(p, found, wrong.get(p), batch) for p, found in measurements.items()}

    def _measured(self) -> dict[int, Measurement]:
        """Differences at all coordinates of every checked parameter."""
        measurements: dict[int, Measurement] = {}
        previous_stencil: Stencil | None = None
        for position in self._theta.checked:
            with self._at(position):
                on_trial = self._theta[position].coordinates_on_trial
                check = self._coordinates.entry_check(position, on_trial, self._gradients[position])
                measurements[position] = measured(check, previous_stencil)
            stencil = measurements[position].results.stencil
            if stencil.step > WIDE:
                previous_stencil = stencil
        return measurements

    def _better_measured(self, measurements: Mapping[int, Measurement]) -> dict[int, Measurement]:
        """Those that another step suits better, by that step."""
        better: dict[int, Measurement] = {}
        for position, measurement in measurements.items():
            with self._at(position):
                found = better_measured(measurement)
            if found is not measurement:
                better[position] = found
        return better

    def _trial(self, position: int, measurement: Measurement, wrong: Wrong | None, batch: int) -> ParameterTrial:
        """The trial of a parameter whose gradient J contradicts at the entries `wrong`, or has yet to be judged by."""
        with self._at(position):
            if wrong is None:
                results = judge_suspects(measurement, batch)
            else:
                results = mark_wrong(measurement, wrong.entries, wrong.witness)
        cost = self._costs[position]
        return ParameterTrial(
            self._theta[position].coordinates_on_trial,
            measurement.check.analytic,
            self._gradients[position].reached,
            results,
            evaluations=cost.evaluations,
            seconds=cost.seconds,
        )

    def _at(self, position: int) -> AbstractContextManager[None]:
        self._progress.at(self._theta[position].name)
        return self._costs[position].counted(self._problem.objective)


def _suspected(measurements: Mapping[int, Measurement]) -> dict[int, Measurement]:
    """The measurements that disagree with the gradient on trial somewhere."""
    return {position: found for position, found in measurements.items() if len(found.suspects)}


NO_REASON = 1e-6
"""An error below 1e-6 of what the tolerance lets pass is no reason to take another step."""


@dataclass
class Cost:
    """What the trial of one parameter has cost so far: evaluations of J, and wall time in seconds."""

    evaluations: int = 0
    seconds: float = 0.0

    def counted(self, objective: Objective) -> Counted:
        """A block whose cost is added."""
        return Counted(self, objective)


class Counted:
    """A block that adds what it costs where it ends well; no generator, which writes to an exception that passes."""

    def __init__(self, cost: Cost, objective: Objective) -> None:
        self._cost, self._objective = cost, objective

    def __enter__(self) -> None:
        self._started, self._before = time.perf_counter(), self._objective.evaluations

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._cost.evaluations += self._objective.evaluations - self._before
            self._cost.seconds += time.perf_counter() - self._started


def exact_notes(problem: Problem, rows: Sequence[ParameterReport]) -> list[str]:
    """The notes on the step of the differences, and on parameters evaluated one coordinate at a time; "" for none."""
    refused = problem.refused
    return [_on_step(problem, rows), _on_noise(problem), on_refusals(refused, problem.model, whom(refused, rows))]


def _on_step(problem: Problem, rows: Sequence[ParameterReport]) -> str:
    steps = sorted({row.eps for row in rows if row.checked and math.isfinite(row.eps)})
    if not steps:
        return ""
    noise, eps = problem.noise, problem.request.eps
    if eps is None:
        taken = f"{steps[0]:.1e}" if len(steps) == 1 else f"between {steps[0]:.1e} and {steps[-1]:.1e}"
        way = "widened" if steps[0] > LECTURE_EPS else "changed"
        changed = f"the step eps was {way} from {LECTURE_EPS:.0e} to {taken} · max(1, |θ|)"
        error_bar = _error_bar(noise, LECTURE_EPS)
        if error_bar < NO_REASON * problem.request.tolerance * max(map(_largest_worst, rows)):
            return f"{changed}, where rounding of J matters least"
        return (
            f"{changed}: at {LECTURE_EPS:.0e} rounding of J could put an error of {error_bar:.0e} on every derivative"
        )
    tolerance = problem.request.tolerance
    drowned = [row for row in rows if row.checked and _error_bar(noise, eps) > tolerance * _largest_worst(row)]
    if not drowned:
        return ""
    return (
        f"eps = {eps:g} drowns in noise for {len(drowned)} of {counted([row.role for row in rows])}: rounding "
        f"of J could put an error of {_error_bar(noise, eps):.0e} on every derivative. "
        "Leave eps out, and a step is chosen that suits J"
    )


def _on_noise(problem: Problem) -> str:
    """The note on parameters that are judged by less noise than that of J; "" where there are none."""
    noises = {position: problem.noise_along([position]) for position in problem.theta.checked}
    quiet = [noise for noise in noises.values() if noise != problem.noise]
    if not quiet:
        return ""
    loud = listed([problem.theta[position].name for position, noise in noises.items() if noise == problem.noise])
    return (
        f"that noise belongs to {loud}, along which J is very steep or rounded on the way. Along the {len(quiet)} "
        f"others it is {quiet[0].sigma:.0e}, and they were judged by that"
    )


def _error_bar(noise: Noise, step: float) -> float:
    """The error bar that the noise of J gives a centered difference of this step."""
    return float(noise.of_slope(np.array([2 * step]), np.array([noise.at_zero]), steps=step)[0])


def _largest_worst(row: ParameterReport) -> float:
    """The largest derivative among the worst coordinates of a row."""
    return max((abs(coordinate.numeric) for coordinate in row.worst), default=0.0)
