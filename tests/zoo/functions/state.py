"""Functions with a state of their own: counters, caches, random numbers."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import Tensor

from tests.zoo.functions.case import Case, normal
from tests.zoo.functions.memory import OldSquare
from tests.zoo.unrepeatable import by_entropy


class NoisyBackward(OldSquare):
    """A backward that is off by 1 % at random: its kernel adds in an order that nobody knows."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return by_entropy(OldSquare.backward(ctx, grad))


class RoundsOtherwise(OldSquare):
    """A backward whose runs differ by rounding."""

    calls = count()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad) * (1 + 2e-16 * (next(RoundsOtherwise.calls) % 3))


class Stale(torch.autograd.Function):
    """x²; what the backward needs is kept on the class, where the next call overwrites it."""

    x: Tensor

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Stale.x = x
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return 2 * Stale.x * grad


class Dropout(torch.autograd.Function):
    """Dropout with its mask saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mask = 2.0 * (torch.rand_like(x) < 0.5)
        return x * ctx.mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.mask


class DropoutDrawnAgain(Dropout):
    """Dropout whose backward draws a mask of its own."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * 2.0 * (torch.rand_like(grad) < 0.5)


def state() -> list[Case]:
    """All of them."""
    x = (normal(3, 4),)
    undecided = {"x": "undecided"}
    return [
        Case("noise in the backward", NoisyBackward.apply, x, failed=("repeatable",), rows=undecided),
        Case("rounding in the backward", RoundsOtherwise.apply, x, entries={"repeatable": "passed"}),
        Case("saved on the class", Stale.apply, x, failed=("repeatable", "released")),
        Case("dropout", Dropout.apply, (normal(6, 5),), entries={"layouts": "not_applicable"}, rows={}),
        Case("dropout drawn again", DropoutDrawnAgain.apply, (normal(6, 5),), wrong=("x",)),
    ]
