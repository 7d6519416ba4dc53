"""Layers: their parameters are rows beside their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.functions.case import Case, normal


class LayerNorm(nn.Module):
    """By hand, from plain operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(width, seed=7)), nn.Parameter(normal(width, seed=8))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight + self.bias


class Attention(nn.Module):
    """One head, a mask of Booleans, and an output of two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(normal(width, 3 * width, seed=9) / 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = (x @ self.qkv).chunk(3, dim=-1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        p = (scores if mask is None else scores.masked_fill(~mask, -1e9)).softmax(-1)
        return p @ v, p


class Biased(torch.autograd.Function):
    """x + b over the rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad.mean(0)


class LinearWithMeanBias(nn.Module):
    """The gradient of its bias is a mean over the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(4, 2, bias=False), nn.Parameter(normal(2, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        return Biased.apply(self.linear(x), self.bias)


class StraightThrough(nn.Module):
    """Rounds, and lets the gradient pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


def seeded(layer: Callable[..., nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    """The layer with the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return layer(*arguments, **options)


def modules() -> list[Case]:
    """All of them."""
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    held = {"hold_detached": True}
    return [
        Case("LayerNorm by hand", LayerNorm(4), (normal(3, 4),)),
        Case("attention with a mask", Attention(2), {"x": normal(1, 3, 2), "mask": causal}),
        Case("GRU cell", seeded(nn.GRUCell, 3, 2), (normal(2, 3), normal(2, 2, seed=1))),
        Case("LSTM", seeded(nn.LSTM, 3, 2), (normal(2, 1, 3),)),
        Case("convolution", seeded(nn.Conv2d, 1, 2, 2), (normal(1, 1, 3, 3),)),
        Case("BatchNorm in training mode", nn.BatchNorm1d(3), (normal(5, 3),), rows={}),
        Case("embedding", seeded(nn.Embedding, 4, 3), (torch.tensor([3, 1, 3, 0, 2]),)),
        Case("a layer whose bias has the wrong gradient", seeded(LinearWithMeanBias), (normal(3, 4),), wrong=("bias",)),
        Case("straight through, held", StraightThrough(), (3 * normal(3, 4),), options=held),
        Case("straight through, not held", StraightThrough(), (3 * normal(3, 4),), wrong=("x",)),
    ]
