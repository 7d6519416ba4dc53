"""Functions of complex numbers: holomorphic or not, with a conjugate or a part forgotten."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.functions.case import Case, complex_normal, normal
from tests.zoo.functions.styles import Product


class ComplexProduct(Product):
    """a·b of complex numbers."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return grad * b.conj(), grad * a.conj()


class WithoutConjugate(ComplexProduct):
    """The conjugate is forgotten for one factor."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return grad * b, grad * a.conj()


class SquaredModulus(torch.autograd.Function):
    """|z|², which is real and not holomorphic."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.real**2 + z.imag**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return 2 * grad * z


class RealPartOnly(SquaredModulus):
    """The imaginary part of the gradient is dropped."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.complex(2 * grad * z.real, torch.zeros_like(z.imag))


class Rotation(torch.autograd.Function):
    """x·exp(iφ) for real x and φ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, phase: Tensor) -> Tensor:
        ctx.save_for_backward(x, phase)
        return torch.polar(torch.ones_like(phase), phase) * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, phase = ctx.saved_tensors
        turned = grad.conj() * torch.polar(torch.ones_like(phase), phase)
        return turned.real, -(turned * x).imag


def absolute_value(z: Tensor) -> Tensor:
    """|z| + Re z²: not holomorphic, by autograd's own formulas."""
    return z.abs() + (z * z).real


def complex_numbers() -> list[Case]:
    """All of them."""
    z, reals = complex_normal(3), (normal(3), normal(3, seed=1))
    return [
        Case("complex, holomorphic", ComplexProduct.apply, (z, complex_normal(3, seed=1))),
        Case("conjugate forgotten", WithoutConjugate.apply, (z, complex_normal(3, seed=1)), wrong=("a",)),
        Case("complex, not holomorphic", SquaredModulus.apply, (z,)),
        Case("imaginary part dropped", RealPartOnly.apply, (z,), wrong=("z",)),
        Case("real to complex", Rotation.apply, reals),
        Case("absolute value, plain", absolute_value, (z,), entries={"forward_ad": "passed"}),
    ]
