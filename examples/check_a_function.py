"""A fused gate, x · silu(gate), with two mistakes in its backward: one that its gradients show, one that they do not.

Run it: `python examples/check_a_function.py`. It prints the report of the Function as it is written, which names the
wrong argument and the broken entry of the contract, then one line on the Function once it is mended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck import Report, check_function


class FusedGate(torch.autograd.Function):
    """x · silu(gate), where silu(g) = g · σ(g): what stands in the middle of a SwiGLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        """Saves what the backward needs."""
        ctx.save_for_backward(x, gate)
        return x * gate * gate.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Has forgotten that σ(gate) moves with the gate, and takes the gradient for laid out like x."""
        x, gate = ctx.saved_tensors
        sigma = gate.sigmoid()
        grad = grad.as_strided(x.shape, x.stride())  # a kernel reads memory, and takes the strides of x for all
        return grad * gate * sigma, grad * x * sigma


class MendedGate(FusedGate):
    """The same with silu'(g) = σ(g) · (1 + g · (1 − σ(g))), for a gradient of any layout."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients for x and for the gate."""
        x, gate = ctx.saved_tensors
        sigma = gate.sigmoid()
        return grad * gate * sigma, grad * x * sigma * (1 + gate * (1 - sigma))


def report_of(function: type[FusedGate]) -> Report:
    """The check of a gate on random numbers."""
    torch.manual_seed(0)
    apply: Callable[..., Tensor] = function.apply
    return check_function(apply, (torch.randn(3, 8), torch.randn(3, 8)))


def main() -> None:
    """Checks the gate with the mistakes, and the one without."""
    print(report_of(FusedGate))
    print(f"\nmended: {report_of(MendedGate)!r}")


if __name__ == "__main__":
    main()
