"""J along single coordinates of one parameter: what is asked of its gradient, entry by entry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Sampler, Samples
from torch_gradcheck.engines.engine import Engine
from torch_gradcheck.engines.shared import SharedEagerEngine
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.directional.slope_check import FEW_STEPS
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.objective.theta import flat_values
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.verdicts.entry_check import FEW_PROBES, PROBES, EntryCheck
from torch_gradcheck.verdicts.kinks import NEARBY_GRADIENTS


class Coordinates:
    """Poses the check of single coordinates of a parameter's gradient.

    Args:
        problem: J, θ and the options.
        progress: told of every evaluation.
    """

    def __init__(self, problem: Problem, progress: ProgressBar) -> None:
        self._problem, self._progress = problem, progress
        self._engine = problem.engine  # made here, so that no parameter is charged for it
        self._nearby: dict[tuple[int, float], dict[int, AnalyticGradient]] = {}

    def single(
        self, position: int, coordinate: int, gradient: AnalyticGradient, unit: float, size: float
    ) -> EntryCheck:
        """The check of one coordinate by steps up to `unit`, where J is known to have no kink at θ.

        Args:
            position: of the parameter in θ.
            coordinate: flat.
            gradient: on trial, of the whole parameter.
            unit: the largest step.
            size: of the parameter's entries.
        """
        check = self.entry_check(position, np.array([coordinate], dtype=np.int64), gradient)
        return replace(
            check,
            nearby=None,
            nearby_analytic=None,
            unit=np.array([unit]),
            scale=np.array([size]),
            eps=None,
            ladder=FEW_STEPS,
        )

    def entry_check(self, position: int, coordinates: Indices, gradient: AnalyticGradient) -> EntryCheck:
        """The check of some coordinates of one parameter's gradient.

        Args:
            position: of the parameter in θ.
            coordinates: shape (N,), flat.
            gradient: on trial, of the whole parameter.
        """
        problem, engine = self._problem, self._engine
        values = flat_values(problem.theta[position])[coordinates]

        def nearby_analytic(k: int, distance: float) -> Floats:
            return self.gradients_nearby(k, distance)[position].values[coordinates]

        return EntryCheck(
            sampler=self._sampler(engine, position, coordinates),
            at_zero=lambda: engine.at_zero(position),
            eager_sampler=self._sampler(SharedEagerEngine(problem, engine.sharing), position, coordinates),
            nearby=lambda k, distance: self._sampler_nearby(k, distance, position, coordinates),
            nearby_analytic=nearby_analytic if problem.request.gradients is None else None,
            analytic=gradient.values[coordinates],
            analytic_epsilon=gradient.epsilon,
            unit=np.maximum(1.0, np.abs(values)),
            scale=_scale(values),
            noise=problem.noise_along([position]),
            tolerance=problem.request.tolerance,
            eps=problem.request.eps,
            probes=PROBES if engine.has_substitutes else FEW_PROBES,
            analytic_error_bar=gradient.error_bar,
        )

    def _sampler(self, engine: Engine, position: int, coordinates: Indices) -> Sampler:
        def sampler(which: Indices, steps: Floats) -> Samples:
            samples = engine.sample(position, coordinates[which], steps)
            self._progress.advance(len(which))
            return samples

        return sampler

    def _sampler_nearby(self, k: int, distance: float, position: int, coordinates: Indices) -> Sampler:
        """J along the same coordinates through the k-th point near θ, by the eager engine."""
        nearby = SharedEagerEngine(self._problem, self._engine.sharing, (k, distance))
        return lambda which, steps: nearby.sample(position, coordinates[which], steps)

    def point(self, k: int) -> RandomDirection:
        """The direction from θ to its k-th nearby points."""
        return self._problem.direction(k + 1)

    def gradients_nearby(self, k: int, distance: float) -> dict[int, AnalyticGradient]:
        """Autograd's gradients at the k-th point near θ; the last few are kept for the parameters that follow."""
        if (k, distance) not in self._nearby:
            if len(self._nearby) >= NEARBY_GRADIENTS:
                self._nearby.pop(next(iter(self._nearby)))
            with self._problem.near(k, distance):
                self._nearby[k, distance] = self._problem.gradients_now()
        return self._nearby[k, distance]


def _scale(values: Floats) -> Floats:
    """The size of each argument: the larger of |x| and the root mean square of all, 1 where all are 0."""
    typical = float(np.sqrt(np.mean(values**2))) if len(values) else 0.0
    return np.maximum(np.abs(values), typical or 1.0)
