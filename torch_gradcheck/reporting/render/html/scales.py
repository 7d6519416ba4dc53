"""From numbers to places on a drawing: logarithmic for errors, and for gradients from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST = -16
"""The power of ten at which the scale of errors begins: what float64 resolves. It ends at 1."""

SPREAD = 30.0
"""Where the largest entry is more than 30 times a typical one, a linear axis would show little but the largest."""


def percent_of_log(error: float | None) -> float:
    """Where an error is between 1e-16 and 1 on a logarithmic scale, in per cent; NaN and more than 1 at the end."""
    if error is None or math.isnan(error) or error >= 1:
        return 0.0 if error is None else 100.0
    return 0.0 if error <= 10.0**LEAST else 100.0 * (1 - math.log10(error) / LEAST)


DEPTH = 1e-9
"""The smallest numbers that a logarithmic axis tells from 0, as a share of the largest."""


@dataclass(frozen=True)
class Axis:
    """The axis that both gradients of a scatter share: from `low` to `high`, 0 on it in any case.

    Attributes:
        low, high: the ends.
        linear_below: numbers below it are spaced evenly, those above by their logarithm; infinite: all evenly.
    """

    low: float
    high: float
    linear_below: float = math.inf

    @classmethod
    def over(cls, values: Sequence[float]) -> Axis:
        """The axis that shows all finite numbers among these; from -1 to 1 where there is none but 0."""
        finite = [value for value in values if math.isfinite(value)]
        low, high = min([0.0, *finite]), max([0.0, *finite])
        if low == high:
            return cls(-1.0, 1.0)
        sizes = sorted([abs(value) for value in finite if value])
        typical, largest = sizes[len(sizes) // 2], sizes[-1]
        return cls(low, high, max(typical, DEPTH * largest) if largest > SPREAD * typical else math.inf)

    @property
    def is_linear(self) -> bool:
        """Whether all numbers are spaced evenly."""
        return math.isinf(self.linear_below)

    def share(self, value: float) -> float:
        """Where a number is, from 0 at the low end to 1 at the high one; NaN and infinity at the nearest end."""
        if math.isnan(value):
            return 0.0
        low, high, here = (self._bent(each) for each in (self.low, self.high, min(max(value, self.low), self.high)))
        return (here - low) / (high - low)

    def _bent(self, value: float) -> float:
        return value / max(-self.low, self.high) if self.is_linear else math.asinh(value / self.linear_below)
