"""An RMSNorm with a backward of its own, as fused kernels have, and two mistakes in it: only one shows in a gradient.

Run it: `python examples/check_a_function.py`. It prints the report of the Function as it is written, which names the
argument whose gradient is wrong and the entry of the contract that is broken, then one line on the Function once it is
mended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck import Report, check_function

EPSILON = 1e-6


class RMSNorm(torch.autograd.Function):
    """y = x / r · w over the last axis, where r = √(mean(x²) + ε)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Saves its inputs: what is computed here would be a constant to whoever differentiates the backward."""
        ctx.save_for_backward(x, weight)
        return normalised(x)[0] * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """dx = (ĝ − n · mean(ĝ · n)) / r and dw = Σ g · n, where ĝ = g · w and n = x / r."""
        x, weight = ctx.saved_tensors
        grad = grad.as_strided(x.shape, x.stride())  # reads memory in the order of x, as a kernel given a pointer does
        normal, r = normalised(x)
        g = grad * weight
        return (g - normal * (g * normal).mean(-1, keepdim=True)) / r, (grad * normal).mean(0)  # a mean, not a sum


class MendedRMSNorm(RMSNorm):
    """The same with a sum over the rows, for a gradient of any layout."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients for x and for the weight."""
        x, weight = ctx.saved_tensors
        normal, r = normalised(x)
        g = grad * weight
        return (g - normal * (g * normal).mean(-1, keepdim=True)) / r, (grad * normal).sum(0)


def normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / r and r."""
    r = (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()
    return x / r, r


def report_of(function: type[RMSNorm]) -> Report:
    """The check of a normalisation on random numbers; weights of exactly 1 would hide mistakes."""
    torch.manual_seed(0)
    apply: Callable[..., Tensor] = function.apply
    return check_function(apply, (torch.randn(5, 8), torch.rand(8)))


def main() -> None:
    """Checks the normalisation with the mistakes, and the one without."""
    print(report_of(RMSNorm))
    print(f"\nmended: {report_of(MendedRMSNorm)!r}")


if __name__ == "__main__":
    main()
