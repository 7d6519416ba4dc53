"""Dtypes: names, machine epsilon, which of two is coarser, a dtype in another precision; inexact and finite numbers."""

from __future__ import annotations

import torch

COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
"""The complex dtype whose real and imaginary parts have a precision."""


def name_of(dtype: torch.dtype) -> str:
    """The name in sentences and in reports, such as "float64"."""
    return str(dtype).removeprefix("torch.")


def epsilon(dtype: torch.dtype) -> float:
    """Machine epsilon of a floating or complex dtype, 2.2e-16 for float64."""
    return float(torch.finfo(dtype).eps)


def is_lower(dtype: torch.dtype, precision: torch.dtype) -> bool:
    """Whether numbers of `dtype` are rounded more coarsely than those of `precision`; False for integers."""
    inexact = dtype.is_floating_point or dtype.is_complex
    return inexact and epsilon(dtype) > epsilon(precision)


def in_precision(dtype: torch.dtype, precision: torch.dtype | None) -> torch.dtype:
    """`dtype` with its width replaced by that of `precision`; integers and booleans stay, and None changes nothing."""
    if precision is None:
        return dtype
    if dtype.is_complex:
        return COMPLEX[precision]
    return precision if dtype.is_floating_point else dtype


def is_inexact(tensor: torch.Tensor) -> bool:
    """Whether it holds floating point or complex numbers, which can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def are_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Which entries are neither NaN nor infinite; of float8 as well, which most of torch's operations cannot take."""
    return torch.isfinite(tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor)
