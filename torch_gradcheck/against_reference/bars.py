"""The error bars of a candidate: how far rounding in its dtype may move a right result, measured on the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torch_gradcheck.against_reference.compared import Compared
from torch_gradcheck.arrays import Floats
from torch_gradcheck.training_step.error_bars import spread_by_entry

MARGIN = 6.0
"""The error bar of an entry, in multiples of the furthest noisy run."""

MARGIN_OF_WHOLE = 3.0
"""The error bars of the whole tensor, in multiples of the furthest noisy run."""


@dataclass(frozen=True)
class Bars:
    """How far rounding may move a right tensor.

    Attributes:
        entry: each entry, shape (coordinates,).
        rms: the root mean square of all.
        slope: the share of the right tensor that it may be too large or too small by.
    """

    entry: Floats
    rms: float
    slope: float


def bars_of(each: Compared) -> Bars:
    """The bars of one tensor: of rounding, and of what equal runs of the candidate differ by."""
    rows = each.entry.shape[0] if len(each.entry.shape) > 1 and each.entry.shape[0] else 1
    half_a_unit = 0.5 * each.epsilon * np.abs(each.right)
    spread = np.max(np.abs(np.array(each.candidate) - each.candidate[0]), axis=0)
    moved = spread_by_entry(each.right, each.rounded, rows)
    entry = MARGIN * np.maximum(moved, half_a_unit) + 2 * spread
    errors = [run - each.right for run in each.rounded]
    rms = max([root_mean_square(error) for error in errors])
    slope = max([abs(slope_of(error, each.right)) for error in errors])
    floor = 0.5 * each.epsilon
    return Bars(
        entry,
        MARGIN_OF_WHOLE * max(rms, floor * root_mean_square(each.right)) + 2 * root_mean_square(spread),
        max(MARGIN_OF_WHOLE * slope, floor),
    )


def root_mean_square(values: Floats) -> float:
    """√ of the mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def slope_of(error: Floats, right: Floats) -> float:
    """⟨error, right⟩ / ⟨right, right⟩: the share of the right tensor in an error; 0 where it is 0."""
    size = float(np.dot(right, right))
    return float(np.dot(error, right)) / size if size else 0.0
