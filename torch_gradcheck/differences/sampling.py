"""The family of scalar functions f_i(t) that is differentiated, and the type of the callable that samples it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch_gradcheck.arrays import Floats, Indices


class Samples(NamedTuple):
    """K values of the f_i, one step t each.

    Attributes:
        steps: shape (K,), the t really taken: θᵢ + t is rounded to the parameter's dtype. At θᵢ = 1 in float32 a step
            of 1e-5 becomes 1.00136e-05.
        values: shape (K,), f_i(t); NaN or infinite where J is.
    """

    steps: Floats
    values: Floats


Sampler = Callable[[Indices, Floats], Samples]
"""Maps (i, t), both of shape (K,), to the samples of f_i(t). f_i(0) = J(θ) is the same number for every i."""
