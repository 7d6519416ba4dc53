"""What is tried, the gradient against functions that can be sampled, and the form of the answer."""

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
    Estimates,
    Ladder,
    Stencil,
    extrapolated_derivatives,
    through_stencil,
)
from torch_gradcheck.differences.sampling import Sampler

ANALYTIC_ROUNDING = 64.0
"""How many machine epsilons of the largest entry the analytic side may be off by rounding alone ..."""

COMPUTED_IN = float(np.finfo(np.float32).eps)
"""... those of float32 at most: a gradient in a lower precision has been rounded to it in the end, entry by entry."""

ACCUSATION = 3.0
"""How many error bars a gradient must be off to be accused."""

NearbySampler = Callable[[int, float], Sampler]
"""(k, scale) to a sampler of f around the k-th random point at that relative distance from θ."""

NearbyGradient = Callable[[int, float], Floats]
"""(k, scale) to what stands on trial there, shape (N,)."""


class Outcome:
    """What was found of one entry, as it stands in arrays.

    Plain numbers: numpy swallows a Ctrl-C that lands while it looks up the attributes of an enum's member.
    """

    MATCH = 0
    KINK = 1
    UNDECIDED = 2
    MISMATCH = 3


@dataclass(frozen=True)
class EntryCheck:
    """What is tried.

    Attributes:
        sampler: evaluates f_i(t) = J(θ + t·e_i).
        at_zero: f(0) as `sampler` computes it, with its own roundoff. A function, to be called once samples have been
            taken: it costs nothing then where a sampler finds it out along with the first ones.
        eager_sampler: f_i(t) in the plainest way, for second opinions; its f(0) is that of `noise`.
        nearby: the same around points near θ; None where J is known to have no kink at θ itself.
        nearby_analytic: the gradient at these points, from the same source; None where there is none, as for one that
            was derived by hand.
        analytic: shape (N,), the gradient on trial.
        analytic_epsilon: machine epsilon of the precision it was given in.
        unit: shape (N,), what steps are multiples of: max(1, |θ_i|).
        scale: shape (N,), the size of the arguments, at which f may well vary: the larger of |θ_i| and the tensor's
            root mean square, 1 where all of it is 0.
        noise: of J.
        tolerance: the largest relative error that passes.
        eps: a step to use as it is, the same for every entry; None to choose one.
        ladder: what a disagreement goes up; below `COARSE` there is the fine one.
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

    def agrees(self, which: Indices, numeric: Floats, error_bar: Floats, margin: float = 1.0) -> Flags:
        """Whether the gradient is within the tolerance and `margin` error bars of `numeric`; never where NaN."""
        analytic = self.analytic[which]
        allowed = self.tolerance * (np.abs(analytic) + np.abs(numeric)) + margin * error_bar + self.rounding[which]
        return np.asarray(np.isfinite(analytic) & (np.abs(analytic - numeric) <= allowed))

    def by_eager_engine(self) -> EntryCheck:
        """The same question, to the second sampler."""
        return replace(self, sampler=self.eager_sampler, at_zero=lambda: self.noise.at_zero)

    def at_nearby_point(self, k: int, distance: float) -> EntryCheck:
        """The same question at the k-th point near θ, where no unit of J lies on its corner."""
        assert self.nearby is not None
        assert self.nearby_analytic is not None
        sampler = self.nearby(k, distance)
        at_zero = float(sampler(np.zeros(1, dtype=np.int64), np.zeros(1)).values[0])
        noise = self.noise._replace(at_zero=at_zero)
        analytic = self.nearby_analytic(k, distance)
        return replace(self, sampler=sampler, at_zero=lambda: at_zero, noise=noise, analytic=analytic)

    def through(self, stencil: Stencil, which: Indices) -> tuple[Floats, Floats]:
        """The centered differences that `window` names, in units of the argument or, for a given step, of 1."""
        if not len(which):
            return np.empty(0), np.empty(0)
        unit = self.unit[which] if self.eps is None else np.ones(len(which))
        return through_stencil(self.sampler, which, unit, stencil, self.noise)

    def climb(self, which: Indices, unit: Floats, ladder: Ladder) -> Estimates:
        """Derivatives from every rung of `ladder`, its steps in multiples of `unit`, one for each of `which`."""
        # Values are subtracted from f(0) there: it must have been computed as they are.
        return extrapolated_derivatives(self.sampler, which, unit, self.noise._replace(at_zero=self.at_zero()), ladder)

    @property
    def roundoff(self) -> float:
        """One standard deviation of the noise of a value of f."""
        return max(self.noise.sigma, self.noise.epsilon / 2 * abs(self.noise.at_zero))

    @property
    def visible(self) -> float:
        """How far f must move for it to be no noise."""
        return ACCUSATION * SIGMAS * self.roundoff

    @cached_property
    def rounding(self) -> Floats:
        """The analytic side's own rounding, shape (N,), in the unit of a derivative."""
        return rounding_of(self.analytic, self.analytic_epsilon)


def rounding_of(analytic: Floats, epsilon: float) -> Floats:
    """How far each entry of a gradient in a precision of machine epsilon `epsilon` may be off by rounding alone."""
    size = np.abs(np.nan_to_num(analytic, posinf=0.0, neginf=0.0))
    on_the_way = ANALYTIC_ROUNDING * min(epsilon, COMPUTED_IN) * float(np.max(size, initial=0.0))
    return np.asarray(on_the_way + epsilon * size)


@dataclass
class EntryResults:
    """What was found, entry by entry; arrays of shape (N,).

    Attributes:
        numeric: the derivative of J, refined where the first one disagreed; at a kink the slope nearest to the
            gradient on trial, within the error bars of the one-sided ones.
        error: its error bar.
        outcome: `Outcome` values.
        left, right: one-sided slopes where the entry went up the ladder, else NaN.
        window: the difference that most entries were judged by.
    """

    numeric: Floats
    error_bar: Floats
    outcome: NDArray[np.int8]
    left: Floats
    right: Floats
    stencil: Stencil

    def worst_first(self, analytic: Floats, suspects: Indices) -> Indices:
        """The suspects, those furthest off first."""
        off = np.nan_to_num(np.abs(analytic[suspects] - self.numeric[suspects]), nan=np.inf)
        return suspects[np.argsort(-off, kind="stable")]
