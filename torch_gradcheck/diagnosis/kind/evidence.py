"""The evidence of a diagnosis: one parameter's gradient on trial beside the right one, with error bars."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices

ERROR_BARS_ALLOWED = 3.0
"""A prediction fits an entry if it is off by at most 3 error bars, beside tolerance and rounding."""

UNEXPLAINED = 0.02
"""A prediction explains a mistake if it leaves at most 2 % of its norm, beside the error bars."""

OUTLIERS = 0.02
"""Up to 2 % of the entries may fit worse: in a wrong tensor most derivatives are taken with two steps only."""

FIRST_ENTRIES, FAILED_AT_FIRST = 10_000, 0.5
"""Of more than 10,000 entries, about so many are tried first; a prediction that half of them fail is dropped."""

SAMPLED_WRONG = 0.1
"""A sample stands for a tensor of which at least 10 % is wrong: it has a thousand wrong entries then."""

PROVEN = 0.01
"""A proven right entry is off by at most 1 % of the tolerance, beside its error bars: 1e-7 of it at 1e-5."""

CONTRAST = 0.1
"""In a proven right entry, difference plus error bars are at most 1/10 of what they would be by the usual mistake."""

STANDS_OUT = 10.0
"""A mistake stands out if its norm is 10 times that of the allowed error bars."""

NEGLIGIBLE = 1e-6
"""An entry below 1e-6 of the largest is no evidence of what is right."""


@dataclass(frozen=True)
class Evidence:
    """The gradient on trial and the right one of one parameter, as flat arrays in the C order of `shape`.

    Attributes:
        analytic: the gradient on trial; zeros where the backward gave None.
        numeric: the right gradient; NaN where it is not known.
        error_bar: of `numeric`.
        wrong: entries known to be wrong.
        judged: entries known to be right or wrong; not those at kinks, undecided ones or padding.
        theta: the parameter's values.
        shape: of the parameter; a complex one has a last axis of 2 besides, (real, imaginary).
        has_complex_axis: whether `shape` has that last axis.
        has_channels: whether the first two of more than two axes are output and input channels, as of a convolution.
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
    has_channels: bool = True
    reached: bool = True
    epsilon: float = float(np.finfo(np.float64).eps)
    tolerance: float = 1e-5

    @classmethod
    def of(
        cls,
        analytic: Floats,
        numeric: Floats,
        theta: Floats,
        error_bar: Floats | float = 0.0,
        tolerance: float = 1e-5,
        has_channels: bool = True,
    ) -> Evidence:
        """The evidence of two arrays of one shape: every entry is judged, and wrong beyond tolerance and error bar."""
        bars = np.broadcast_to(np.asarray(error_bar, dtype=np.float64), analytic.shape).ravel()
        flat, right = np.ravel(analytic).astype(np.float64), np.ravel(numeric).astype(np.float64)
        with np.errstate(invalid="ignore"):
            close = np.abs(flat - right) <= tolerance * (np.abs(flat) + np.abs(right)) + bars
        judged = np.ones(len(flat), dtype=bool)
        return cls(
            flat,
            right,
            bars,
            ~close,
            judged,
            np.ravel(theta),
            np.shape(analytic),
            has_channels=has_channels,
            tolerance=tolerance,
        )

    def sample(self) -> Evidence | None:
        """Every k-th entry, about 10,000 of them, as a vector; None where there are no more, or few are wrong."""
        stride = self.analytic.size // FIRST_ENTRIES
        if stride < 2 or np.mean(self.wrong) < SAMPLED_WRONG:
            return None
        analytic = self.analytic[::stride].copy()
        return Evidence(
            analytic,
            self.numeric[::stride].copy(),
            self.error_bar[::stride].copy(),
            self.wrong[::stride].copy(),
            self.judged[::stride].copy(),
            self.theta[::stride].copy(),
            shape=analytic.shape,
            reached=self.reached,
            epsilon=self.epsilon,
            tolerance=self.tolerance,
        )

    @cached_property
    def finite(self) -> bool:
        """Whether every entry on trial is a number."""
        return bool(np.all(np.isfinite(self.analytic)))

    @cached_property
    def resolved(self) -> Flags:
        """Judged entries whose derivative is more than noise. Two gradients of zero are evidence of nothing."""
        size = np.abs(np.nan_to_num(self.numeric))
        largest = float(np.max(size[self.judged], initial=0.0))
        with np.errstate(over="ignore"):  # of an error bar without limit
            allowed = ERROR_BARS_ALLOWED * self.error_bar
        return np.asarray(self.judged & (size > allowed) & (size > NEGLIGIBLE * largest))

    @cached_property
    def right(self) -> Flags:
        """Entries proven right: the usual relative error of the wrong entries would have shown in them.

        An entry that is off by less than the tolerance, yet by more than its error bar, is not proven right.
        """
        size, off, allowed = np.abs(self.numeric), np.abs(self.off), ERROR_BARS_ALLOWED * self.error_bar
        with np.errstate(all="ignore"):
            relative = np.nan_to_num((off / (size + np.abs(self.analytic)))[self.wrong], nan=1.0)
            usual = float(np.median(relative)) if len(relative) else self.tolerance
            agrees = off <= allowed + PROVEN * self.tolerance * size
            contrasts = off + allowed <= CONTRAST * usual * size
        return np.asarray(self.resolved & ~self.wrong & agrees & contrasts)

    @cached_property
    def stands_out(self) -> bool:
        """Whether the mistake as a whole is clearly more than noise, which many coefficients would fit."""
        bars = ERROR_BARS_ALLOWED * np.linalg.norm(self.error_bar[self.judged])
        return bool(np.linalg.norm(self.off[self.judged]) > STANDS_OUT * bars)

    @cached_property
    def off(self) -> Floats:
        """Analytic minus numeric."""
        return np.asarray(self.analytic - self.numeric)

    @cached_property
    def weights(self) -> Floats:
        """Weights of entries in a fit: 1 / error bar, each error bar taken as at least 1e-6 of the largest entry."""
        floor = NEGLIGIBLE * float(np.max(np.abs(np.nan_to_num(self.numeric))[self.judged], initial=0.0))
        return np.asarray(1 / np.maximum(self.error_bar, floor or 1.0))

    def residual(self, predicted: Floats, gain: float = 1.0, error_bar: Floats | None = None) -> float:
        """‖analytic − predicted‖₂ / ‖analytic‖₂ if `predicted` explains the mistake, else infinite.

        It explains the mistake if every entry but `OUTLIERS` is within tolerance, error bars and rounding, and if it
        leaves no more than `UNEXPLAINED` of the mistake's norm.

        Args:
            predicted: shape of `analytic`, the gradient that a kind of mistake would leave.
            gain: the factor on `numeric` in `predicted`, which multiplies the error bars if above 1.
            error_bar: error bars of the entries that `predicted` was made of, where these are not its own.
        """
        bars = (
            ERROR_BARS_ALLOWED
            * max(abs(gain), 1.0)
            * (self.error_bar if error_bar is None else np.maximum(error_bar, self.error_bar))
        )
        known = np.flatnonzero(self.judged & np.isfinite(predicted))
        some = known[:: max(len(known) // FIRST_ENTRIES, 1)]
        if len(known) > FIRST_ENTRIES and np.mean(self._outside(some, predicted[some], bars[some])) > FAILED_AT_FIRST:
            return np.inf
        left, off = np.abs(self.analytic - predicted)[known], np.abs(self.off)[known]
        outside = self._outside(known, predicted[known], bars[known])
        if np.sum(outside) > OUTLIERS * len(left) or np.any(left[outside] > off[outside] / 5):
            return np.inf
        if np.linalg.norm(left) > UNEXPLAINED * np.linalg.norm(off) + np.linalg.norm(bars[known]):
            return np.inf
        return float(np.linalg.norm(left) / max(np.linalg.norm(self.analytic[known]), np.finfo(np.float64).tiny))

    def _outside(self, which: Indices, expected: Floats, bars: Floats) -> Flags:
        """Entries of `which` that are off what is expected of them by more than tolerance, bars and rounding allow."""
        analytic = self.analytic[which]
        allowed = self.tolerance * (np.abs(analytic) + np.abs(expected)) + bars + self.rounding
        return np.asarray(np.abs(analytic - expected) > allowed)

    @cached_property
    def rounding(self) -> float:
        """How far an entry may be off by the rounding of its own precision: 64 machine epsilons of the largest."""
        return 64 * self.epsilon * float(np.max(np.abs(self.analytic), initial=0.0))

    def explains(self, predicted: Floats) -> bool:
        """Whether `predicted` explains the mistake."""
        return bool(np.isfinite(self.residual(predicted)))

    def rearranged(self, order: Indices) -> bool:
        """Whether `numeric[order]` explains the mistake."""
        if len(order) > FIRST_ENTRIES and self._differs_at_first(order):
            return False
        return bool(np.isfinite(self.residual(self.numeric[order], error_bar=self.error_bar[order])))

    def _differs_at_first(self, order: Indices) -> bool:
        """Whether half of a few thousand entries of `numeric[order]` do not fit, before millions are put in order."""
        some = np.arange(0, len(order), len(order) // FIRST_ENTRIES)
        some = some[self.judged[some] & np.isfinite(self.numeric[order[some]])]
        bars = ERROR_BARS_ALLOWED * np.maximum(self.error_bar[order[some]], self.error_bar[some])
        return bool(np.mean(self._outside(some, self.numeric[order[some]], bars)) > FAILED_AT_FIRST)

    def grid(self, values: Floats) -> Floats:
        """A flat array reshaped to the parameter's shape."""
        return values.reshape(self.shape)
