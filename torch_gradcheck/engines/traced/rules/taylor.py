"""Functions by a Taylor polynomial around x: close to x the remainder is less than a rounding error.

A step of a difference quotient moves values downstream by about 1e-5. There a polynomial in the delta, whose
coefficients all perturbations share, takes a fraction of the time of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.torch_internals.operations import overload

SMALL = 1e-4
"""The largest delta of an argument. Its fourth power, 1e-16, is a rounding error of 1 in float64."""


def largest(d: Tensor) -> float:
    """The largest absolute value, NaN where one is NaN, 0 of an empty tensor; infinite for complex and integer ones."""
    if not d.numel():
        return 0.0
    if not d.is_floating_point():
        return float("inf")
    low, high = (float(extreme) for extreme in torch.aminmax(d))
    return max(-low, high) if low == low else low


def is_small(d: Tensor, bound: float | None) -> bool:
    """Whether no absolute value exceeds `SMALL`, decided by `bound` where that is known; false where one is NaN."""
    return (largest(d) if bound is None else bound) <= SMALL


def difference_quotient(function: Any, y: Tensor, d: Tensor) -> Tensor:
    """(f(x + d) − y) / d for y = f(x) and small d: f'(x) + f''(x)/2 · d + f'''(x)/6 · d², in new memory."""
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
    operation: coefficients
    for name, coefficients in (("tanh.default", _tanh), ("sigmoid.default", _sigmoid), ("exp.default", _exp))
    if (operation := overload(name)) is not None
}
"""Operation f → f', f''/2 and f'''/6, in terms of y = f(x)."""
