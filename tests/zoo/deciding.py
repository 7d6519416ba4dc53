"""Models whose forward decides by values that it computes: experts to visit, iterations to make, steps to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


class Doubled(torch.autograd.Function):
    """tanh with a gradient that is twice as large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 2 * g * (1 - y * y)


def doubled(x: Tensor) -> Tensor:
    """tanh with a gradient that is twice as large."""
    return Doubled.apply(x)


class Experts(nn.Module):
    """A router and its experts, of which each token visits two; the experts that are visited run one by one.

    Args:
        routed: what the logits of the router go through.
        activation: of the experts.
    """

    def __init__(self, routed: Activation = torch.tanh, activation: Activation = torch.tanh) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.up = nn.Parameter(torch.randn(3, 5, 4))
        self.down = nn.Parameter(torch.randn(3, 4, 5))
        self.routed, self.activation = routed, activation

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.routed(self.router(x)).softmax(-1).topk(2, dim=-1)
        mask = F.one_hot(chosen, num_classes=3).permute(2, 1, 0)
        result = torch.zeros_like(x)
        for (expert,) in mask.sum((-1, -2)).greater(0).nonzero():
            rank, token = torch.where(mask[expert])
            hidden = self.activation(x[token] @ self.up[expert].T) @ self.down[expert].T
            result.index_add_(0, token, hidden * weights[token, rank, None])
        return result


class FixedPoint(nn.Module):
    """z = tanh(W·z + x), iterated as long as z moves; at most 30 times."""

    def __init__(self, activation: Activation = torch.tanh) -> None:
        super().__init__()
        self.W = nn.Parameter(0.3 * torch.randn(4, 4))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        residual, left = torch.ones(()), 30
        while residual > 1e-3 and left:
            left -= 1
            previous, z = z, self.activation(z @ self.W + x)
            residual = (z - previous).norm()
        return z


class Adaptive(nn.Module):
    """An ODE from 0 to 1 by Heun's method, with steps that follow the difference from Euler's."""

    def __init__(self, activation: Activation = torch.tanh) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 4)
        self.activation = activation

    def forward(self, y: Tensor) -> Tensor:
        t, h = torch.zeros(()), torch.tensor(0.3)
        while bool(t < 1):
            h = torch.minimum(h, 1 - t)
            before = self.slope(y)
            after = self.slope(y + h * before)
            error = (h * (after - before)).abs().max()
            if error <= 0.05:
                t, y = t + h, y + h * (before + after) / 2
            h = 0.9 * h * (0.05 / (error + 1e-9)).sqrt().clamp(0.3, 3)
        return y

    def slope(self, y: Tensor) -> Tensor:
        """dy/dt."""
        return self.last(self.activation(self.first(y)))
