"""Mistakes in gradients derived by hand and given with `gradients=`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.planted.row import Planted, Problem, plant


class TwoLayers(nn.Module):
    """ŷ = W2 tanh(W1 x + b1) + b2, whose gradients are simple to write by hand, and to get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.W1, self.b1 = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))
        self.W2, self.b2 = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.W1.T + self.b1) @ self.W2.T + self.b2


def backprop(model: TwoLayers, x: Tensor, t: Tensor, mistake: str = "") -> dict[str, Tensor]:
    """dθ of ½·mean((ŷ − t)²) + 0.05·(‖W_1‖² + ‖W_2‖²), by hand, in float64."""
    W_1, b_1, W_2, b_2 = (p.detach().double() for p in (model.W1, model.b1, model.W2, model.b2))
    x, t = x.double(), t.double()
    a = torch.tanh(x @ W_1.T + b_1)
    dy = (a @ W_2.T + b_2 - t) / t.numel()
    if mistake == "mean over rows only":
        dy = dy * t.shape[1]
    da = dy @ (W_2.T if mistake == "W2 transposed" else W_1 if mistake == "W1 for W2" else W_2)
    dz = da * (1 - a if mistake == "tanh not squared" else 1 - a**2)
    decay = 0.0 if mistake == "no weight decay" else 0.1
    return {
        "W1": dz.T @ x + decay * W_1,
        "b1": dz.mean(0) if mistake == "b1 averaged" else dz.sum(0),
        "W2": (a.T @ dy if mistake == "dW2 transposed" else dy.T @ a) + decay * W_2,
        "b2": dy.sum(1)[:3] if mistake == "b2 over wrong axis" else dy.sum(0),
    }


def by_hand(mistake: str, spoil: Callable[[dict[str, Tensor]], None] | None = None) -> Callable[[bool], Problem]:
    def build(wrong: bool) -> Problem:
        torch.manual_seed(7)
        model = TwoLayers()
        x, t = torch.randn(5, 3), torch.randn(5, 3)

        def loss_fn(y: Tensor, target: Tensor) -> Tensor:
            return squared_error(y, target) + 0.05 * ((model.W1**2).sum() + (model.W2**2).sum())

        gradients = backprop(model, x, t, mistake if wrong else "")
        if wrong and spoil is not None:
            spoil(gradients)
        return Problem(model, loss_fn, (x, t), gradients)

    return build


def _nan_entry(gradients: dict[str, Tensor]) -> None:
    gradients["W2"][1, 2] = float("nan")


def _infinite_entry(gradients: dict[str, Tensor]) -> None:
    gradients["b1"][0] = float("inf")


def _swapped_biases(gradients: dict[str, Tensor]) -> None:
    gradients["b1"], gradients["b2"] = gradients["b2"], gradients["b1"]


def _half_precision(gradients: dict[str, Tensor]) -> None:
    for name, value in gradients.items():
        gradients[name] = value.half().double()  # the precision it was computed in, not the one it is kept in


def hand_written_bugs() -> Iterator[Planted]:
    everything = ("W1", "b1", "W2", "b2")
    weights = ("W1", "W2")
    for mistake, wrong, kinds in (
        ("mean over rows only", everything, {"W1": "unknown", "b1": "scaled", "W2": "unknown", "b2": "scaled"}),
        ("W2 transposed", ("W1", "b1"), "unknown"),
        ("W1 for W2", ("W1", "b1"), "unknown"),
        ("tanh not squared", ("W1", "b1"), "unknown"),
        ("no weight decay", weights, "weight_decay"),
        ("b1 averaged", ("b1",), "scaled"),
        ("dW2 transposed", ("W2",), "unknown"),
        ("b2 over wrong axis", ("b2",), "unknown"),
    ):
        yield plant(f"by-hand-{mistake.replace(' ', '-')}", by_hand(mistake), wrong, kinds, None)
    yield plant("by-hand-nan-entry", by_hand("", _nan_entry), ("W2",), "partial", None)
    yield plant("by-hand-infinite-entry", by_hand("", _infinite_entry), ("b1",), "partial", None)
    yield plant("by-hand-biases-swapped", by_hand("", _swapped_biases), ("b1", "b2"), "unknown", None)
    yield plant("by-hand-half-precision", by_hand("", _half_precision), everything, "low_precision", None)
