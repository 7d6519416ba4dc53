"""The family of scalar functions f_i(t) that is differentiated, and how it is sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch_gradcheck.arrays import Floats, Indices


class Samples(NamedTuple):
    """Values of f_i at one step each.

    Attributes:
        steps: shape (K,), the t really taken (θᵢ + t is rounded to a number the parameter can hold).
        values: shape (K,), f_i(t); NaN or infinite where J is.
    """

    steps: Floats
    values: Floats


Sampler = Callable[[Indices, Floats], Samples]
"""(i, t), both of shape (K,), to the samples of f_i(t); f_i(0) is the same number for every i."""
