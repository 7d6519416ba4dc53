"""What a check would make of a wrong gradient: how far it is off, against the tolerance and the error bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import flat_values
from torch_gradcheck.verdicts.entry_check import rounding_of

WIDEST = 0.03
"""The relative step of a wide stencil, which a check takes where the default step drowns in the noise of J."""

Gradients = Mapping[int, AnalyticGradient]
"""By position in θ."""


class Change(NamedTuple):
    """How a fault changes the gradient of J.

    Attributes:
        is_visible: an entry is off by more than a check would pass.
        largest: the largest difference in an entry on trial; NaN counts as infinite.
        error_bar: the smallest error bar of a changed tensor, infinite where nothing is changed.
    """

    is_visible: bool
    largest: float
    error_bar: float


class Sensitivity:
    """Compares gradients with the right one, entry by entry, as a check compares them with differences.

    Args:
        problem: J, θ and its noise.
        right: the gradient of J.
    """

    def __init__(self, problem: Problem, right: Gradients) -> None:
        self._problem, self.right = problem, right
        self._bars: dict[int, Floats] = {}

    def change(self, gradients: Gradients) -> Change:
        """What a fault changes that has made these gradients of the right one; others are as they were."""
        found = Change(False, 0.0, np.inf)
        for position, gradient in gradients.items():
            one = self._of_tensor(position, gradient.values)
            if one.largest:
                found = Change(
                    found.is_visible or one.is_visible,
                    max(found.largest, one.largest),
                    min(found.error_bar, one.error_bar),
                )
        return found

    def _of_tensor(self, position: int, wrong: Floats) -> Change:
        entries = self._problem.theta[position].coordinates_on_trial
        wrong, right = wrong[entries], self.right[position].values[entries]
        bars = self.bars(position)
        with np.errstate(all="ignore"):
            off = np.nan_to_num(np.abs(wrong - right), nan=np.inf)
            allowed = self._problem.request.tolerance * (np.abs(wrong) + np.abs(right)) + bars
            allowed += rounding_of(wrong, self._problem.noise.epsilon)
            seen = ~(off <= allowed)
        return Change(bool(seen.any()), float(off.max(initial=0.0)), float(bars.min(initial=np.inf)))

    def bars(self, position: int) -> Floats:
        """The error bars of the derivatives in one tensor, shape (entries on trial,)."""
        if position not in self._bars:
            self._bars[position] = self._measured(position)
        return self._bars[position]

    def _measured(self, position: int) -> Floats:
        noise, entry = self._problem.noise, self._problem.theta[position]
        typical = np.sqrt(np.mean(self.right[position].values ** 2)) if entry.coordinates else 0.0
        step = first_step(noise)
        if noise.sigma_at_zero / step + noise.growth > self._problem.request.tolerance / 4 * typical:
            step = WIDEST
        unit = np.maximum(1.0, np.abs(flat_values(entry)[entry.coordinates_on_trial]))
        return noise.of_slope(2 * step * unit, np.full(len(unit), noise.at_zero), steps=step)
