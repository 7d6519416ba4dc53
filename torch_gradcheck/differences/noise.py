"""The noise of J, measured from values of J, and the error bar that this noise gives a difference quotient."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats

SIGMAS = 6.0
"""An error bar is this many standard deviations of noise wide: normal noise exceeds 6σ once in 5e8."""


class Noise(NamedTuple):
    """The value of f at 0 and the noise of f, in units of f.

    Attributes:
        at_zero: f(0).
        sigma: one standard deviation of the noise of f near 0.
        epsilon: machine epsilon of the precision f is evaluated in, 2.2e-16 for float64.
        growth: noise per relative step: at step s the noise is growth · s. Matters where J(θ) is 0 by cancellation, as
            for a sum of squares of residuals that vanish. J is then almost free of noise at θ and noisy everywhere
            else: a residual r that is rounded by ε changes its square by 2·r·ε.
    """

    at_zero: float
    sigma: float
    epsilon: float
    growth: float = 0.0

    @property
    def sigma_at_zero(self) -> float:
        """One standard deviation of the noise of f(0): `sigma`, but no less than the rounding ε/2·|f(0)|."""
        return max(self.sigma, self.epsilon / 2 * abs(self.at_zero))

    def of_slope(self, width: Floats, *values: Floats, steps: Floats | float = 0.0) -> Floats:
        """Error bar of a difference quotient (a − b) / width, in units of a slope.

        It is SIGMAS·√2·σ / |width|. σ is `sigma`, but no less than growth · steps and than ε/2 of the larger value.

        Example: at σ = 1e-16 and h = 1e-5, width = 2e-5 and the error bar is 6·√2·1e-16 / 2e-5 = 4.2e-11.

        Args:
            width: distance of the two arguments.
            values: each of the shape of `width`, the values a and b; one is enough where both are nearly equal.
            steps: the relative steps the values were taken at; 0 ignores `growth`.
        """
        floor = self.epsilon / 2 * np.max(np.abs(values), axis=0)
        sigma = np.maximum(np.maximum(self.sigma, self.growth * steps), floor)
        return np.asarray(SIGMAS * np.sqrt(2) * sigma / np.abs(width))


POINTS = 9
"""How many equally spaced values of J one measurement of noise takes."""


def measured_noise(values: Floats) -> float:
    """One standard deviation of the noise in equally spaced values of a smooth function.

    The k-th difference removes a polynomial trend of degree k − 1. It leaves noise of variance C(2k, k)·σ²:

        σ_k² = mean((Δᵏf)²) / C(2k, k)

    The estimate is the first σ_k that agrees with σ_{k+1} and σ_{k+2} within a factor of 4 and whose differences Δᵏf
    have both signs, as those of noise do. Without such a k it is the smallest σ_k. Source: Moré and Wild, "Estimating
    computational noise", SIAM J. Sci. Comput. 33 (2011).

    Args:
        values: shape (m + 1,), m ≥ 4, f at equally spaced points close to each other.
    """
    orders = range(1, len(values) - 1)
    differences = {k: np.diff(values, k) for k in orders}
    sigma = {k: root_mean_square(d) / math.sqrt(math.comb(2 * k, k)) for k, d in differences.items()}
    for k in list(orders)[:-2]:
        three = [sigma[k], sigma[k + 1], sigma[k + 2]]
        changes_sign = differences[k].min() < 0 < differences[k].max()
        if changes_sign and max(three) <= 4 * min(three):
            return sigma[k]
    return min(sigma.values())


TYPICAL = 0.6745
"""The median of |x| for normal x of standard deviation 1."""

ALIKE = 8.0
"""Medians of a few numbers: three orders of differences of one noise give estimates within a factor of 8."""


def noise_of_stairs(values: Floats) -> float:
    """One standard deviation of the noise in values of a function that may be a staircase; 0 where it is a smooth one.

    As in `measured_noise`, differences of noise have the variance C(2k, k)·σ² at each order k, and those of a smooth f
    fall from order to order. Here σ_k = median |Δᵏf| / (0.6745·√C(2k, k)), since a stair between two points moves a few
    of them much. What a smooth f leaves is not taken for noise: σ_3, σ_4 and σ_5 must agree. A kink between the points
    looks like stairs: f must be looked at elsewhere, too.

    Args:
        values: shape (m + 1,), m ≥ 8, at equally spaced points that are about as far apart as the stairs are wide.
    """
    sigma = [
        float(np.median(np.abs(np.diff(values, k)))) / (TYPICAL * math.sqrt(math.comb(2 * k, k))) for k in (3, 4, 5)
    ]
    return sigma[0] if max(sigma) <= ALIKE * min(sigma) else 0.0


def root_mean_square(values: Floats) -> float:
    """√mean(x²); 0 for an empty array, infinite or NaN where an entry is.

    Scaled by the largest |x|, since x² overflows from 1e154 on.
    """
    largest = float(np.max(np.abs(values), initial=0.0))
    if not np.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.mean((values / largest) ** 2))) if largest else 0.0
