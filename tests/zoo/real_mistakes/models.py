"""The small models that the mistakes sit in: layers in other shapes, beside a skip, over tokens, under a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.planted.row import (
    FRONT,
    LAYER,
    Backward,
    HandWritten,
    Planted,
    Problem,
    formula,
    plant,
    sandwich,
)

NETWORK = ("0.weight", "0.bias", "2.weight", "2.bias")
Make = Callable[[bool], nn.Module]
Formula = Callable[..., Tensor]
Kinds = str | Mapping[str, str]


class Shaped(nn.Module):
    """A layer that sees each row of the batch in another shape."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.inner, self.shape = layer, shape

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.reshape(len(x), *self.shape))
        return y.flatten(1)


class Skipped(nn.Module):
    """x + layer(x): a mistake of the layer reaches what is upstream mixed with what the skip brings."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(x)
        return y


def shaped(make: Make, *shape: int) -> Make:
    return lambda wrong: Shaped(make(wrong), *shape)


def skipped(make: Make) -> Make:
    return lambda wrong: Skipped(make(wrong))


def upstream(name: str, kind: Kinds, forward: Formula, backward: Backward, width: int = 4, **more: Any) -> Planted:
    """A layer without parameters whose input gradient is wrong, so that the front is."""
    make = formula(forward, backward)
    if "shape" in more:
        make = shaped(make, *more["shape"])
    if more.get("skip"):
        make = skipped(make)
    return plant(name, sandwich(make, width, more.get("out")), FRONT, kind, more.get("culprit", _culprit(more)))


def _culprit(more: Mapping[str, Any]) -> str:
    return f"{LAYER}.inner" if "shape" in more or more.get("skip") else LAYER


class Tokens(nn.Module):
    """A front that all tokens share, then a layer that sees them as (batch, token, channel), then a back."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.front, self.layer, self.back = nn.Linear(3, 4), layer, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.back(self.layer(self.front(x)))
        return y


class Scores(nn.Module):
    """Self-attention of one head, whose scores go through the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.inner(x @ x.transpose(1, 2)), -1) @ x


def tokens(
    name: str,
    kind: str,
    forward: Formula,
    backward: Backward,
    scores: bool = False,
    skip: bool = False,
    wrong: tuple[str, ...] = FRONT,
) -> Planted:
    """A layer without parameters whose input gradient is wrong at some tokens, so that the front that all share is."""
    make = formula(forward, backward)
    inner = Scores if scores else Skipped if skip else None

    def build(is_wrong: bool) -> Problem:
        torch.manual_seed(7)
        model = Tokens(make(is_wrong) if inner is None else inner(make(is_wrong)))
        return Problem(model, squared_error, (torch.randn(3, 5, 3), torch.randn(3, 5, 2)))

    return plant(name, build, wrong, kind, LAYER if inner is None else f"{LAYER}.inner")


def network(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> Problem:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return Problem(model, loss, (torch.randn(6, 3), targets))


def by_hand(forward: Formula, backward: Backward, wrong: bool) -> Formula:
    return (lambda *inputs: HandWritten.apply(forward, backward, *inputs)) if wrong else forward
