"""The check of a gradient entry by entry: its inputs (EntryCheck), the possible outcomes, and its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import SIGMAS, Noise
from torch_gradcheck.differences.richardson import (
    COARSE,
    NO_DIFFERENCES,
    Differences,
    Estimates,
    Ladder,
    Stencil,
    extrapolated_derivatives,
    through_stencil,
)
from torch_gradcheck.differences.sampling import Sampler

ANALYTIC_ROUNDING = 64.0
"""Rounding that every entry of an analytic gradient may carry, in machine epsilons of the largest entry.

In float64 it is 64 · 2.2e-16 = 1.4e-14 of the largest entry.
"""

COMPUTED_IN = float(np.finfo(np.float32).eps)
"""The largest machine epsilon that `ANALYTIC_ROUNDING` multiplies: that of float32, 1.2e-7.

float16 and bfloat16 gradients are summed in float32 and rounded once at the end, which `rounding_of` adds entry by
entry.
"""

CONTRADICTION = 3.0
"""A derivative contradicts a gradient that is more than 3 of its error bars off: 18 standard deviations of noise."""

PROBES, FEW_PROBES = 8, 2
"""How many entries a step is chosen by: where an engine takes many samples at a time, and where it does not."""

NearbySampler = Callable[[int, float], Sampler]
"""Maps (k, distance) to a sampler of f around the k-th random point at that relative distance from θ."""

NearbyGradient = Callable[[int, float], Floats]
"""Maps (k, distance) to the gradient at that point, shape (N,), from the source of the gradient on trial."""


class Outcome:
    """The outcome of one entry, as the arrays hold it.

    Plain numbers and no enum: numpy swallows a Ctrl-C that lands while it looks up the attributes of an enum's member.

    Attributes:
        MATCH: the gradient agrees with the derivative.
        KINK: f is not differentiable there, and the gradient lies between its one-sided slopes.
        UNDECIDED: differences of f cannot tell.
        MISMATCH: the gradient is wrong.
    """

    MATCH = 0
    KINK = 1
    UNDECIDED = 2
    MISMATCH = 3


@dataclass(frozen=True)
class EntryCheck:
    """The gradient of N functions f_i(t) = J(θ + t·e_i) on trial, and all that is needed to judge it.

    Attributes:
        sampler: evaluates f_i(t).
        at_zero: returns f(0) as `sampler` computes it, with the roundoff of `sampler`. Call it after the first samples:
            some engines compute f(0) along with them, at no extra cost.
        eager_sampler: f_i(t) by the eager engine, for a second opinion; its f(0) is `noise.at_zero`.
        nearby: samplers around points near θ; None where J is known to have no kink at θ.
        nearby_analytic: gradients at these points, from the source of the gradient on trial; None where that source
            has no other points, as a gradient derived by hand.
        analytic: shape (N,), the gradient on trial.
        analytic_epsilon: machine epsilon of the precision the gradient on trial was given in.
        unit: shape (N,), max(1, |θ_i|); steps are multiples of it.
        scale: shape (N,), the length over which f may well vary: the larger of |θ_i| and the tensor's root mean square,
            1 where the whole tensor is 0.
        noise: of J.
        tolerance: the largest relative error that passes, such as 1e-5.
        eps: the step for every entry, as the user gave it; None to choose a step.
        ladder: the steps for entries that disagree; after `COARSE`, `FINE` is tried as well.
        probes: how many entries of a tensor are differenced at all steps, where one has to be chosen.
        analytic_error_bar: how far entries of the gradient on trial may be off besides, of shape (N,) or one for all,
            where two runs of the backward differ.
    """

    sampler: Sampler
    at_zero: Callable[[], float]
    eager_sampler: Sampler
    nearby: NearbySampler | None
    nearby_analytic: NearbyGradient | None
    analytic: Floats
    analytic_epsilon: float
    unit: Floats
    scale: Floats
    noise: Noise
    tolerance: float
    eps: float | None
    ladder: Ladder = COARSE
    probes: int = PROBES
    analytic_error_bar: Floats | float = 0.0

    def agrees(self, which: Indices, numeric: Floats, error_bar: Floats, margin: float = 1.0) -> Flags:
        """Entries where the gradient on trial is within the tolerance and `margin` error bars of `numeric`.

        |a − n| ≤ tolerance · (|a| + |n|) + margin · error bar + rounding of a. False where a or n is NaN.

        Args:
            which: shape (K,), the entries.
            numeric: shape (K,), derivatives of f.
            error_bar: shape (K,), of `numeric`.
            margin: how many error bars are allowed.
        """
        analytic = self.analytic[which]
        allowed = self.tolerance * (np.abs(analytic) + np.abs(numeric)) + margin * error_bar + self.rounding[which]
        return np.asarray(np.isfinite(analytic) & (np.abs(analytic - numeric) <= allowed))

    def by_eager_engine(self) -> EntryCheck:
        """The same check with `eager_sampler` as its sampler."""
        return replace(self, sampler=self.eager_sampler, at_zero=lambda: self.noise.at_zero)

    def at_nearby_point(self, k: int, distance: float) -> EntryCheck:
        """The same check at the k-th random point near θ, where no unit of J lies exactly on its kink."""
        assert self.nearby is not None
        assert self.nearby_analytic is not None
        sampler = self.nearby(k, distance)
        at_zero = float(sampler(np.zeros(1, dtype=np.int64), np.zeros(1)).values[0])
        noise = self.noise._replace(at_zero=at_zero)
        analytic = self.nearby_analytic(k, distance)
        return replace(self, sampler=sampler, at_zero=lambda: at_zero, noise=noise, analytic=analytic)

    def through(self, stencil: Stencil, which: Indices) -> Differences:
        """Centered differences of `which` by one stencil. Steps given by `eps` are absolute."""
        if not len(which):
            return NO_DIFFERENCES
        unit = self.unit[which] if self.eps is None else np.ones(len(which))
        return through_stencil(self.sampler, which, unit, stencil, self.noise)

    def jump(self, found: Differences) -> Floats:
        """Right slope minus left slope, shape (K,), at the innermost step h: of a kink, and h·f'' of a curved f."""
        with np.errstate(all="ignore"):
            return np.asarray(2 * (found.middle - self.at_zero()) / found.step)

    def kink(self, near: Differences, far: Differences) -> Floats:
        """That part of the jump which does not shrink with the step, shape (K,): (j₁·h₂ − j₂·h₁) / (h₂ − h₁)."""
        with np.errstate(all="ignore"):
            shrinking = self.jump(near) * far.step - self.jump(far) * near.step
            return np.asarray(shrinking / (far.step - near.step))

    def climb(self, which: Indices, unit: Floats, ladder: Ladder) -> Estimates:
        """Derivatives of `which` by extrapolation over `ladder`, whose steps are multiples of `unit`, shape (K,)."""
        # One-sided slopes subtract f(0) from samples: it must come from the sampler that gave these.
        return extrapolated_derivatives(self.sampler, which, unit, self.noise._replace(at_zero=self.at_zero()), ladder)

    @property
    def visible(self) -> float:
        """A change of f above this is no noise: CONTRADICTION · SIGMAS = 18 standard deviations."""
        return CONTRADICTION * SIGMAS * self.noise.sigma_at_zero

    @cached_property
    def rounding(self) -> Floats:
        """How far the gradient on trial may be off by its own rounding, shape (N,), in units of a derivative."""
        return rounding_of(self.analytic, self.analytic_epsilon) + self.analytic_error_bar


def rounding_of(analytic: Floats, epsilon: float, largest: float | None = None) -> Floats:
    """How far each entry of a gradient may be off by rounding alone, shape of `analytic`.

    64·min(ε, 1.2e-7)·max|g| + ε·|g_i|. Example: (1.0, 1e-3) in bfloat16, ε = 7.8e-3, gives (7.8e-3, 1.5e-5).

    Args:
        analytic: the gradient.
        epsilon: ε, the machine epsilon of its precision.
        largest: max|g| of the gradient that this is a part of; None: of this one.
    """
    size = np.abs(np.nan_to_num(analytic, posinf=0.0, neginf=0.0))
    largest = float(np.max(size, initial=0.0)) if largest is None else largest
    of_sums = ANALYTIC_ROUNDING * min(epsilon, COMPUTED_IN) * largest
    return np.asarray(of_sums + epsilon * size)


@dataclass
class EntryResults:
    """The results of a check, entry by entry; arrays of shape (N,).

    Attributes:
        numeric: the derivative of J, refined where the first difference disagreed. At a kink it is the slope nearest
            to the gradient on trial, within the error bars of the one-sided slopes.
        error_bar: of `numeric`.
        outcome: `Outcome` values.
        left, right: one-sided slopes of entries that were refined on a ladder, else NaN.
        stencil: the centered difference that most entries were judged by.
        bent: entries of which the first difference shows a kink, or a slope much smaller than its change; None where
            nothing is known of that.
    """

    numeric: Floats
    error_bar: Floats
    outcome: NDArray[np.int8]
    left: Floats
    right: Floats
    stencil: Stencil
    bent: Flags | None = None

    def worst_first(self, analytic: Floats, suspects: Indices) -> Indices:
        """The suspects, sorted by |analytic − numeric|, the largest first; NaN counts as infinite."""
        off = np.nan_to_num(np.abs(analytic[suspects] - self.numeric[suspects]), nan=np.inf)
        return suspects[np.argsort(-off, kind="stable")]
