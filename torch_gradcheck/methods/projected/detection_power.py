"""What random directions prove: how large an error would have been seen, and with what odds.

Components of a direction have a random sign and a size drawn uniformly from [1/2, 3/2]: their density is 1/2 and none
of them is near zero.
"""

from __future__ import annotations

from math import sqrt

ODDS = 1e-6
"""The odds at which an error as large as a report states would have been missed."""

DENSITY = 0.5
"""The largest density of one component."""


def detectable(threshold: float, directions: int, looks: float = 1.0) -> float:
    """The length of an error e that directions r_1 … r_K would have missed with odds of at most `ODDS`.

    Missed means |⟨e, r_k⟩ + b_k| ≤ threshold in all of them, whatever else, b_k, independent of r_k there is. A sum
    Σ e_i·r_i of independent variables of density M has density √2·M / ‖e‖ at most, so that

        P(missed) ≤ (looks · 2 · threshold · √2·M / ‖e‖)^K

    Source: Rudelson and Vershynin, "Small ball probabilities for linear images of high-dimensional distributions",
    IMRN (2015), theorem 1.2.

    Args:
        threshold: how far J's slope lay from the gradient's at most, in any direction.
        directions: K.
        looks: how many chances to agree a direction had, in the geometric mean: steps to choose from, directions that
            may disagree.
    """
    return looks * 2 * threshold * sqrt(2) * DENSITY * float(ODDS ** (-1 / directions))
