"""Masks that the backward forgets, and mistakes in one place: a token, a tile, a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo.planted.row import (
    WEIGHT,
    Backward,
    Planted,
    Problem,
    formula,
    plant,
    sandwich,
)
from tests.zoo.real_mistakes.models import NETWORK, by_hand, network, tokens, upstream

KEPT = (torch.arange(60).reshape(3, 5, 4) * 7 % 5 > 1).double()
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
VALID = torch.tensor([1.0, 1, 1, 0, 0]).double()[:, None]


def dropout(x: Tensor) -> Tensor:
    return x * KEPT / 0.5


def masked(x: Tensor) -> Tensor:
    return x.masked_fill(~CAUSAL, -2.0)


def masks() -> Iterator[Planted]:
    yield tokens("dropout, mask forgotten", "unmasked", dropout, lambda g, x: (g / 0.5,))
    yield tokens("dropout, not rescaled", "scaled", dropout, lambda g, x: (g * KEPT,))
    yield tokens("dropout in a branch, not rescaled", "propagated", dropout, lambda g, x: (g * KEPT,), skip=True)
    yield tokens("causal mask, not in the backward", "unmasked", masked, lambda g, x: (g.clone(),), scores=True)
    yield tokens("padded tokens, not masked", "unmasked", lambda x: x.sin() * VALID, lambda g, x: (g * x.cos(),))
    yield plant("cross-entropy, ignored rows counted", _ignoring, NETWORK, "unmasked", "loss_fn")


def places() -> Iterator[Planted]:
    def lost(index: tuple[Any, ...], factor: float = 0.0) -> Backward:
        def backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
            right = g * x.cos()
            right[index] *= factor
            return (right,)

        return backward

    every = slice(None)
    yield tokens("one token twice", "block", torch.sin, lost((every, 1), 2.0))
    yield tokens("last token lost", "block", torch.sin, lost((every, -1)))
    yield tokens("one tile lost", "partial", torch.sin, lost((every, slice(3, 5), slice(2, 4))))
    yield upstream("one head twice", "partial", torch.sin, lost((every, 1), 2.0), 12, shape=(3, 4))
    yield upstream("last row of the batch lost", "block", torch.sin, lost((-1,)), 4)
    tile = formula(lambda x, w: x @ w.T, _last_tile_lost, weight=(6, 6))
    yield plant("tile at the border lost", sandwich(tile, 6), WEIGHT, "partial")


def _last_tile_lost(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    right = g.T @ x
    right[4:, 4:] = 0
    return g @ w, right


def _ignoring(wrong: bool) -> Problem:
    torch.manual_seed(7)
    targets = torch.tensor([0, 2, -100, 1, -100, 2])

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (torch.softmax(y, -1) - F.one_hot(t.clamp(0), 3)) / (t >= 0).sum(), None

    return network(by_hand(F.cross_entropy, backward, wrong), targets)
