"""Mistakes in the gradients of a layer's own parameters, and lost paths to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.losses import squared_error
from tests.zoo.planted.normalisations import layer_norm, layer_norm_backward
from tests.zoo.planted.row import (
    BIAS,
    FRONT,
    WEIGHT,
    Backward,
    Planted,
    Problem,
    formula,
    plant,
    sandwich,
)
from tests.zoo.real_mistakes.models import by_hand


def sums() -> Iterator[Planted]:
    def summed(bias: Callable[[Tensor], Tensor]) -> Backward:
        return lambda g, x, w, b: (g @ w, g.T @ x, bias(g))

    for name, kind, bias in (
        ("over features", "wrong_sum", lambda g: g.sum(1)),
        ("of the last row only", "wrong_sum", lambda g: g[-1]),
        ("as a mean", "scaled", lambda g: g.mean(0)),
        ("shifted by one", "permuted", lambda g: g.sum(0).roll(1)),
    ):
        layer = formula(F.linear, summed(bias), weight=(5, 5), bias=(5,))
        yield plant(f"bias summed {name}", sandwich(layer, 5), BIAS, kind)
    layer = formula(layer_norm, layer_norm_backward(weight_input=True), weight=(4,), bias=(4,))
    yield plant("norm's scale by the raw input", sandwich(layer, 4), WEIGHT, "wrong_sum")
    yield plant("padding that gets a gradient", _padded, ("0.weight",), "partial", "0")
    gates = formula(_gated, _gates_swapped, weight=(8, 4))
    yield plant("gates swapped", sandwich(gates, 4), WEIGHT, "permuted")


def _gated(x: Tensor, w: Tensor) -> Tensor:
    reset, update = (x @ w.T).chunk(2, -1)
    return reset.sigmoid() * update.tanh()


def _gates_swapped(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    reset, update = (x @ w.T).chunk(2, -1)
    r, u = reset.sigmoid(), update.tanh()
    dr, du = g * u * r * (1 - r), g * r * (1 - u * u)
    return torch.cat([dr, du], -1) @ w, torch.cat([du, dr], -1).T @ x


class _Lookup(nn.Module):
    """Rows of a table, 0 for token 0; wrong: its backward gives that row a gradient."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        return by_hand(_rows, _rows_and_padding, self.wrong)(tokens, self.weight)


def _rows(tokens: Tensor, weight: Tensor) -> Tensor:
    return weight[tokens] * (tokens > 0).unsqueeze(-1)


def _rows_and_padding(g: Tensor, tokens: Tensor, weight: Tensor) -> tuple[None, Tensor]:
    return None, torch.zeros_like(weight).index_add(0, tokens, g)


def _padded(wrong: bool) -> Problem:
    torch.manual_seed(7)
    model = nn.Sequential(_Lookup(wrong), nn.Linear(3, 2))
    return Problem(model, squared_error, (torch.tensor([1, 0, 2, 3, 0]), torch.randn(5, 2)))


def paths() -> Iterator[Planted]:
    yield plant("scale detached", sandwich(_Scaled, 4), FRONT, "detached")
    yield plant("tied weight, one use detached", sandwich(_Tied, 4), ("layer.weight",), "detached")
    yield plant("the same mistake in two layers", sandwich(_twice, 4), FRONT, "slope", "layer.1")


def _twice(wrong: bool) -> nn.Module:
    silu = formula(F.silu, lambda g, x: (g * torch.sigmoid(x),))
    return nn.Sequential(silu(wrong), silu(wrong))


class _Scaled(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        largest = x.norm(dim=-1, keepdim=True)
        return (x / (largest.detach() if self.wrong else largest)).sin()


class _Tied(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        again = self.weight.detach() if self.wrong else self.weight
        return torch.tanh(x @ self.weight.T) @ again
