"""Noise of J: its roundoff, measured from values of J itself, and the error bar it gives a slope."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats

SIGMAS = 6.0
"""How many standard deviations of noise an error bar allows."""


class Noise(NamedTuple):
    """What is known of f besides its values.

    Attributes:
        at_zero: f(0).
        sigma: one standard deviation of the noise of f near 0.
        epsilon: machine epsilon of the precision f is evaluated in.
        growth: what a relative step of 1 has it grow to, in proportion. A loss that is 0 because numbers cancel, like
            the squares of vanishing residuals, is noisier everywhere else: the rounding of a residual r shows there as
            2 · r · ε.
    """

    at_zero: float
    sigma: float
    epsilon: float
    growth: float = 0.0

    def of_slope(self, width: Floats, *values: Floats, steps: Floats | float = 0.0) -> Floats:
        """Error bar of a difference of two values divided by `width`; a value is rounded by ε/2 of itself at least.

        Args:
            width: distance of the arguments.
            values: shape of `width`, the two values.
            steps: the relative steps they were taken at, where these are known.
        """
        floor = self.epsilon / 2 * np.max(np.abs(values), axis=0)
        sigma = np.maximum(np.maximum(self.sigma, self.growth * steps), floor)
        return np.asarray(SIGMAS * np.sqrt(2) * sigma / np.abs(width))


POINTS = 9
"""How many equally spaced values of J a measurement takes."""


def measured_noise(values: Floats) -> float:
    """One standard deviation of the noise in equally spaced values of a smooth function.

    The k-th difference removes a polynomial trend of degree k − 1 and leaves noise of variance C(2k, k)·σ²:

        σ_k² = mean((Δᵏf)²) / C(2k, k)

    The estimate is the first σ_k that agrees with the two orders after it within a factor of 4, and whose differences
    change sign, as those of noise do; where no order does, the smallest σ_k. Source: Moré and Wild, "Estimating
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


def root_mean_square(values: Floats) -> float:
    """√mean(x²), 0 of nothing."""
    largest = float(np.max(np.abs(values), initial=0.0))  # whose square may be beyond what a float holds
    return largest * float(np.sqrt(np.mean((values / largest) ** 2))) if largest else 0.0
