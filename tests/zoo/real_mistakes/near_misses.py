"""Near relations of mistakes that are told, which the numbers do not prove."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.planted.row import (
    FRONT,
    WEIGHT,
    Planted,
    formula,
    plant,
    sandwich,
)
from tests.zoo.real_mistakes.layers import softmax
from tests.zoo.real_mistakes.models import upstream


def not_told() -> Iterator[Planted]:
    """Near relations of what is told, which the numbers do not prove."""
    yield upstream("softmax, diagonal only", "unknown", softmax, lambda g, x: (g * softmax(x) * (1 - softmax(x)),))
    yield upstream("softmax, sum over the batch", "unknown", softmax, _sum_over_batch)
    yield upstream("wrong in the upstream gradient", "unknown", torch.sin, _spoiled)
    yield plant("a mistake that is told behind one that is not", sandwich(_two, 4), FRONT, "unknown", "layer.1")
    yield plant(
        "wrong in both of two calls", sandwich(_Twice, 4), (*FRONT, "layer.inner.weight"), "unknown", "layer.inner"
    )
    stale = formula(lambda x, w: x @ w.T, lambda g, x, w: (g @ w, g.T @ x.roll(1, 0)), weight=(4, 4))
    yield plant("input of another row", sandwich(stale, 4), WEIGHT, "unknown")


def _sum_over_batch(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (softmax(x) * (g - (g * softmax(x)).sum(0)),)


def _spoiled(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g * x.cos() * (1 + 0.3 * torch.sin(50 * g)),)


def _two(wrong: bool) -> nn.Module:
    silu = formula(F.silu, lambda g, x: (g * torch.sigmoid(x),))
    diagonal = formula(softmax, lambda g, x: (g * softmax(x) * (1 - softmax(x)),))
    return nn.Sequential(diagonal(wrong), silu(wrong))


class _Twice(nn.Module):
    """A layer that is called twice; wrong: it takes the inputs of other rows."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        backward = lambda g, x, w: (g @ w.roll(1, 0), g.T @ x.roll(1, 0))  # noqa: E731
        self.inner = formula(lambda x, w: x @ w.T, backward, weight=(4, 4))(wrong)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(torch.tanh(self.inner(x)))
        return y
