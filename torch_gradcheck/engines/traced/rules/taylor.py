"""Functions close to where they are known: what remains of their Taylor series is less than a rounding error.

A step of a difference moves what lies downstream by 10⁻⁵ or so, and there a polynomial in the move, with coefficients
shared by all perturbations, takes a fraction of the time of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

SMALL = 1e-4
"""How far an argument may move: to the fourth power this is a rounding error of 1 in float64."""


def largest(d: Tensor) -> float:
    """The largest absolute value of all, NaN where one is NaN, 0 of nothing; infinite where it is not asked for."""
    if not d.numel():
        return 0.0
    if not d.is_floating_point():
        return float("inf")
    low, high = (float(extreme) for extreme in torch.aminmax(d))
    return max(-low, high) if low == low else low


def is_small(d: Tensor, bound: float | None) -> bool:
    """Whether no entry exceeds `SMALL`, by a bound where one is known; never where one is NaN."""
    return (largest(d) if bound is None else bound) <= SMALL


def difference_quotient(function: Any, y: Tensor, d: Tensor) -> Tensor:
    """(f(x + d) − y) / d for y = f(x) and small d: f'(x) + f''(x)/2 · d + f'''(x)/6 · d², in memory of its own."""
    first, second, third = COEFFICIENTS[function](y)
    result = torch.addcmul(second, d, third)
    return torch.addcmul(first, d, result, out=result)


def _tanh(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = (1 - y) * (1 + y)
    return slope, -y * slope, slope * (y * y - 1 / 3)


def _sigmoid(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = y * (1 - y)
    return slope, slope * (1 / 2 - y), slope * (1 / 6 - y + y * y)


def _exp(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return y, y / 2, y / 6


COEFFICIENTS: dict[Any, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    aten.tanh.default: _tanh,
    aten.sigmoid.default: _sigmoid,
    aten.exp.default: _exp,
}
"""Function → f', f''/2 and f'''/6, in terms of y = f(x)."""
