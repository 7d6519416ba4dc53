"""Finds, for all tensors at once, which of the gradients that disagree with differences J contradicts beyond doubt.

A disagreement may be due to a kink at θ, to a slope between the steps or to noise, and to look for each of these at
single coordinates takes hundreds of evaluations a tensor. As a rule there is a mistake. So three cheap witnesses are
heard first: the differences at every coordinate, the gradient that the formulas of torch give for the recorded
operations, and J itself along one direction through all suspected entries, at θ and beside it. What they agree on is
wrong; whatever they leave open is looked at closely.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.richardson import Stencil, through_stencil
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.gradients.analytic import analytic_gradient
from torch_gradcheck.methods.coordinates import Coordinates
from torch_gradcheck.methods.directional.confirm import Block, Confirmer, Suspect
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.directional.motions import Direction
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.verdicts.kinks import nearby_distance
from torch_gradcheck.verdicts.measurement import Measurement
from torch_gradcheck.verdicts.ratio import SQUARABLE

CLOSE = 8.0
"""Points beside θ are at most an eighth of the step away by which J's slope was found; steps there are as much smaller.
"""

POINT = 0
"""Number of the random point beside θ at which the gradient on trial is asked for again."""


class Wrong(NamedTuple):
    """What J contradicts in one gradient.

    Attributes:
        entries: positions among the coordinates on trial.
        witness: another gradient of J, at all coordinates on trial; None without one.
    """

    entries: Indices
    witness: Floats | None


class Contradiction:
    """Hears the witnesses on the gradients that disagree with differences of J.

    Args:
        problem: J, θ and the options.
        coordinates: poses the checks of single coordinates.
        progress: advanced at every evaluation.
    """

    def __init__(self, problem: Problem, coordinates: Coordinates, progress: ProgressBar) -> None:
        self._problem, self._coordinates, self._progress = problem, coordinates, progress
        self._theta, self._noise = problem.theta, problem.noise

    def found(self, measurements: Mapping[int, Measurement]) -> dict[int, Wrong]:
        """What is wrong beyond doubt, by position in θ.

        Args:
            measurements: of the gradients that disagree somewhere.
        """
        wrong: dict[int, Wrong] = {}
        suspects: dict[int, Suspect] = {}
        for position, measurement in measurements.items():
            witness = self._witness(position)
            entries = measurement.contradicted(witness)
            largest = np.max(
                np.abs(measurement.check.analytic[entries] - measurement.results.numeric[entries]), initial=0
            )
            if SQUARABLE[0] < largest < SQUARABLE[1]:
                wrong[position] = Wrong(entries, witness)
                suspects[position] = self._suspect(position, measurement, entries)
        return {position: wrong[position] for position in self._confirmer.confirmed(suspects)} if suspects else {}

    def _witness(self, position: int) -> Floats | None:
        """The gradient of the recorded operations by torch's own formulas; None where there is no such record."""
        if self._rederived is None or position in self._problem.refused:
            return None
        entry = self._theta[position]
        gradient = analytic_gradient(entry, self._rederived[position], self._noise.epsilon)
        return gradient.values[entry.coordinates_on_trial]

    @cached_property
    def _rederived(self) -> list[Tensor | None] | None:
        try:
            return self._problem.engine.gradients()
        except Untraceable:
            return None

    def _suspect(self, position: int, measurement: Measurement, wrong: Indices) -> Suspect:
        """The tensor along its error at the entries `wrong`, scaled so that its two slopes differ by 1."""
        coordinates = self._theta[position].coordinates_on_trial[wrong]
        on_trial, numeric = measurement.check.analytic[wrong], measurement.results.numeric[wrong]
        error = numeric - on_trial
        squared = float(error @ error)
        entries, length = self._theta[position].coordinates, squared**-0.5
        return Suspect(coordinates, on_trial, numeric, entries, length, step=None)

    # J along a direction through all suspected entries ------------------------------------------------------------

    @property
    def _directions(self) -> Directions:
        return self._problem.directions

    @cached_property
    def _confirmer(self) -> Confirmer:
        return Confirmer(
            self._directions,
            self._problem.noise_along,
            self._problem.request.tolerance,
            substitute=self._problem.engine.value_substitute,
            excuse=self._is_right_beside,
        )

    def _is_right_beside(self, block: Block, direction: Direction, reach: float, step: float) -> bool:
        """Whether beside θ, where no unit of J is exactly at its kink, the slopes no longer contradict each other.

        The gradient on trial there is autograd's, or the given one of θ. With a step so small that J stays on one
        piece, noise may hide all of it; then nothing is excused.
        """
        distance = min(nearby_distance(self._noise), step / CLOSE)
        on_trial, verified = block.slopes
        if self._problem.request.gradients is None:
            on_trial = block.slope_of(self._coordinates.gradients_nearby(POINT, distance))
        with self._coordinates.point(POINT).at(distance):
            problem = self._problem
            beside = Directions(problem.objective, self._theta, problem.request.seed, self._progress, beside=True)
            sampler = beside.sampler([direction], self._problem.engine.value_substitute)
            stencil = Stencil(distance / CLOSE * reach, 0)
            noise = self._problem.noise_along(list(block.suspects))
            found = through_stencil(sampler, np.zeros(1, np.int64), np.ones(1), stencil, noise)
        gap, expected = found.central[0] - on_trial, verified - block.slopes[0]
        # Of several tensors, one that is right beside θ shows in the sum; a steep J may move it as much, and is told
        # apart when each is tried alone.
        right = abs(gap) if len(block.suspects) == 1 else block.weakest - abs(gap - expected)
        return bool(found.roundoff[0] < block.weakest / 4 and right < block.weakest / 2)
