"""Blocks that get no gradient at all where their input needs none, as in revtorch 0.2.4.

A reversible network (Gomez et al., 2017) keeps no activations: its backward computes the inputs anew from the outputs,
runs each block again with a graph and calls `.backward()` there, which leaves the parameters their gradient in `.grad`.
But autograd calls the backward of a Function only if one of its *arguments* needs a gradient. Where the reversible
blocks come first and see the data itself, nothing does, and they never learn.

python examples/found_in_the_wild/input_without_gradient.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_gradcheck import check_module


class Couplings(torch.autograd.Function):
    """y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁), one pair (f, g) after another, without a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: list[tuple[nn.Module, nn.Module]]) -> Tensor:
        """The outputs, in the shape of x."""
        x1, x2 = x.chunk(2, dim=-1)
        for f, g in pairs:
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
        ctx.pairs, ctx.y = pairs, torch.cat([x1, x2], dim=-1)
        return torch.cat([x1, x2], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Backwards through the pairs; each leaves the gradient of its parameters in their `.grad`."""
        (y1, y2), (dy1, dy2) = ctx.y.chunk(2, dim=-1), grad.chunk(2, dim=-1)
        for f, g in reversed(ctx.pairs):
            y2, dy1 = Couplings.undo(g, y1, y2, dy1, dy2)
            y1, dy2 = Couplings.undo(f, y2, y1, dy2, dy1)
        return torch.cat([dy1, dy2], dim=-1), None

    @staticmethod
    def undo(h: nn.Module, fixed: Tensor, sum_: Tensor, d_fixed: Tensor, d_sum: Tensor) -> tuple[Tensor, Tensor]:
        """What h(fixed) was added to, and the gradient of `fixed`."""
        leaf = fixed.detach().requires_grad_()
        with torch.enable_grad():
            added = h(leaf)
            added.backward(d_sum)
        assert leaf.grad is not None
        return sum_ - added.detach(), d_fixed + leaf.grad


class ReversibleNet(nn.Module):
    """Two reversible blocks on the data itself, and a linear layer."""

    def __init__(self, input_needs_grad: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4))
        self.output = nn.Linear(6, 2)
        self.input_needs_grad = input_needs_grad

    def forward(self, x: Tensor) -> Tensor:
        """Two scores for each row of x, of 6 features."""
        if self.input_needs_grad:
            x = x.detach().requires_grad_()
        blocks = list(self.blocks)
        hidden = Couplings.apply(x, list(zip(blocks[::2], blocks[1::2], strict=True)))  # type: ignore[no-untyped-call]
        scores: Tensor = self.output(hidden)
        return scores


def problem(input_needs_grad: bool = False) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """Eight examples."""
    torch.manual_seed(0)
    return ReversibleNet(input_needs_grad), nn.CrossEntropyLoss(), (torch.randn(8, 6), torch.randint(0, 2, (8,)))


def repaired() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """The same problem, the input being made to need a gradient, so that the backward runs."""
    return problem(input_needs_grad=True)


if __name__ == "__main__":
    print(check_module(*problem()))
