"""The detection power of random directions: the size of an error that they would not have missed.

Components of a direction have a random sign and a size drawn uniformly from [1/2, 3/2]. Their density is at most 1/2,
and none of them is near zero.
"""

from __future__ import annotations

from math import sqrt

MISSED = 1e-6
"""The probability that an error of the size in a report was missed. The detection power is 1 less this number."""

DENSITY = 0.5
"""M, the largest probability density of one component: it is spread over two intervals of length 1."""


def detectable(threshold: float, directions: int, choices: float = 1.0) -> float:
    """The 2-norm ‖e‖ of an error that directions r_1 … r_K would have missed with a probability of at most `MISSED`.

    Missed means |⟨e, r_k⟩ + b_k| ≤ threshold along all K directions; b_k is any other error that does not depend on
    r_k. A sum Σ e_i·r_i of independent variables of density at most M has a density of at most √2·M / ‖e‖, so that

        P(missed) ≤ (choices · 2 · threshold · √2·M / ‖e‖)^K

    Solved for ‖e‖ at P = `MISSED`. Example: threshold 1e-5 and K = 8 give ‖e‖ = 8.0e-5.

    Source: Rudelson and Vershynin, "Small ball probabilities for linear images of high-dimensional distributions",
    IMRN (2015), theorem 1.2.

    Args:
        threshold: the largest distance, over the directions, of J's slope from the gradient's.
        directions: K.
        choices: how many chances to agree a direction had, as a geometric mean: steps to choose from, times ways to
            choose the directions that agree.
    """
    return choices * 2 * threshold * sqrt(2) * DENSITY * float(MISSED ** (-1 / directions))
