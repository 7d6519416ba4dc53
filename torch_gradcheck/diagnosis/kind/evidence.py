"""What a diagnosis goes by: one parameter's gradient on trial beside the right one, entry by entry, with error bars."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices

BARS = 3.0
"""How many error bars a prediction may be off in an entry."""

EXPLAINED = 0.02
"""A prediction explains a mistake when it leaves at most this much of it, in norm."""

OUTLIERS = 0.02
"""This share of the entries may be off further: their derivative was taken with two steps only."""

GLANCE, GLARING = 10_000, 0.5
"""In a larger tensor so many entries are looked at first; a prediction that fails in this share of them is dropped."""

PROVEN = 0.01
"""An entry that is off by no more than this share of the tolerance is right, not just close."""

CONTRAST = 0.1
"""And difference and error bar are this much smaller, relative to it, than what the wrong ones are off by."""

NEGLIGIBLE = 1e-6
"""An entry this small against the largest has nothing to say about what is right."""


@dataclass(frozen=True)
class Evidence:
    """The gradient on trial and the right one, flat arrays in the C order of `shape`.

    Attributes:
        analytic: the gradient on trial; zeros where the backward gave None.
        numeric: the right one; NaN where nobody knows it.
        error: the error bar of `numeric`.
        wrong: the entries known to be wrong.
        judged: the entries known to be right or wrong; not those at kinks, undecided or left out.
        theta: what the parameter holds.
        shape: of the parameter; with a last axis of 2 (real, imaginary) for a complex one.
        parts: whether it has that axis.
        reached: False where the backward gave None.
        epsilon: machine epsilon of the precision the gradient on trial is kept in.
        tolerance: the relative error that passes.
    """

    analytic: Floats
    numeric: Floats
    error_bar: Floats
    wrong: Flags
    judged: Flags
    theta: Floats
    shape: tuple[int, ...]
    has_complex_axis: bool = False
    reached: bool = True
    epsilon: float = float(np.finfo(np.float64).eps)
    tolerance: float = 1e-5

    @classmethod
    def of(
        cls, analytic: Floats, numeric: Floats, theta: Floats, error_bar: Floats | float = 0.0, tolerance: float = 1e-5
    ) -> Evidence:
        """The evidence of two arrays of one shape, where nothing is known but these: wrong is what disagrees."""
        bar = np.broadcast_to(np.asarray(error_bar, dtype=np.float64), analytic.shape).ravel()
        flat, right = np.ravel(analytic).astype(np.float64), np.ravel(numeric).astype(np.float64)
        with np.errstate(invalid="ignore"):
            close = np.abs(flat - right) <= tolerance * (np.abs(flat) + np.abs(right)) + bar
        judged = np.ones(len(flat), dtype=bool)
        return cls(flat, right, bar, ~close, judged, np.ravel(theta), np.shape(analytic), tolerance=tolerance)

    @cached_property
    def finite(self) -> bool:
        """Whether every entry on trial is a number."""
        return bool(np.all(np.isfinite(self.analytic)))

    @cached_property
    def resolved(self) -> Flags:
        """Judged entries whose derivative is more than noise: both sides zero is no evidence of anything."""
        size = np.abs(np.nan_to_num(self.numeric))
        largest = float(np.max(size[self.judged], initial=0.0))
        return np.asarray(self.judged & (size > BARS * self.error_bar) & (size > NEGLIGIBLE * largest))

    @cached_property
    def right(self) -> Flags:
        """Entries proven right: a mistake like that of the wrong ones would have been seen in them.

        What is off by less than the tolerance, yet by more than its error bar, is not proven right either.
        """
        size, off, bar = np.abs(self.numeric), np.abs(self.off), BARS * self.error_bar
        with np.errstate(all="ignore"):
            relative = np.nan_to_num((off / (size + np.abs(self.analytic)))[self.wrong], nan=1.0)
            usual = float(np.median(relative)) if len(relative) else self.tolerance
            agrees = off <= bar + PROVEN * self.tolerance * size
            contrasts = off + bar <= CONTRAST * usual * size
        return np.asarray(self.resolved & ~self.wrong & agrees & contrasts)

    @cached_property
    def off(self) -> Floats:
        """Analytic minus numeric."""
        return np.asarray(self.analytic - self.numeric)

    @cached_property
    def weights(self) -> Floats:
        """What an entry counts in a fit: 1 / its error bar, those of the best entries being taken as equal."""
        floor = NEGLIGIBLE * float(np.max(np.abs(np.nan_to_num(self.numeric))[self.judged], initial=0.0))
        return np.asarray(1 / np.maximum(self.error_bar, floor or 1.0))

    def residual(self, predicted: Floats, gain: float = 1.0, error_bar: Floats | None = None) -> float:
        """‖analytic − predicted‖₂ / ‖analytic‖₂ if `predicted` explains the mistake, else infinite.

        It does if it is within the tolerance and the error bars (times `gain`, the factor on `numeric` in it) entry by
        entry, outliers apart, and leaves next to nothing of the mistake. Where `predicted` is made of other entries
        than its own, `error` holds their error bars.
        """
        bars = (
            BARS
            * max(abs(gain), 1.0)
            * (self.error_bar if error_bar is None else np.maximum(error_bar, self.error_bar))
        )
        known = np.flatnonzero(self.judged & np.isfinite(predicted))
        if len(known) > GLANCE and np.mean(self._outside(predicted, bars, known[:: len(known) // GLANCE])) > GLARING:
            return np.inf
        left, off = np.abs(self.analytic - predicted)[known], np.abs(self.off)[known]
        bar, outside = bars[known], self._outside(predicted, bars, known)
        if np.sum(outside) > OUTLIERS * len(left) or np.any(left[outside] > off[outside] / 5):
            return np.inf
        if np.linalg.norm(left) > EXPLAINED * np.linalg.norm(off) + np.linalg.norm(bar):
            return np.inf
        return float(np.linalg.norm(left) / max(np.linalg.norm(self.analytic[known]), np.finfo(np.float64).tiny))

    def _outside(self, predicted: Floats, bars: Floats, which: Indices) -> Flags:
        """Entries that are off by more than tolerance, error bar and rounding allow."""
        analytic, expected = self.analytic[which], predicted[which]
        allowed = self.tolerance * (np.abs(analytic) + np.abs(expected)) + bars[which] + self._rounding
        return np.asarray(np.abs(analytic - expected) > allowed)

    @cached_property
    def _rounding(self) -> float:
        return 64 * self.epsilon * float(np.max(np.abs(self.analytic), initial=0.0))

    def explains(self, predicted: Floats) -> bool:
        """Whether `predicted` explains the mistake."""
        return bool(np.isfinite(self.residual(predicted)))

    def rearranged(self, order: Indices) -> bool:
        """Whether `numeric[order]` explains the mistake."""
        return bool(np.isfinite(self.residual(self.numeric[order], error_bar=self.error_bar[order])))

    def grid(self, values: Floats) -> Floats:
        """A flat array in the parameter's shape."""
        return values.reshape(self.shape)
