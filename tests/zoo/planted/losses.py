"""Mistakes in the backward of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.zoo.planted.normalisations import softmax
from tests.zoo.planted.row import Backward, HandWritten, Planted, Problem, plant


def loss_bug(
    name: str,
    forward: Callable[..., Tensor],
    backward: Backward,
    kinds: str,
    classes: bool = False,
    weight: float = 1.0,
) -> Planted:
    """A two-layer model under weight · a loss with a hand-written backward: every parameter is wrong."""

    def build(wrong: bool) -> Problem:
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        target = torch.tensor([0, 2, 1, 1, 2]) if classes else torch.rand(5, 3)

        def loss_fn(y: Tensor, t: Tensor) -> Tensor:
            return weight * (HandWritten.apply(forward, backward, y, t) if wrong else forward(y, t))

        return Problem(model, loss_fn, (torch.randn(5, 3), target))

    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    return plant(name, build, names, kinds, "loss_fn")


def mean_square(y: Tensor, t: Tensor) -> Tensor:
    return ((y - t) ** 2).mean()


def weighted_bce(y: Tensor, t: Tensor) -> Tensor:
    positive = torch.full((3,), 3.0, dtype=y.dtype)
    return nn.functional.binary_cross_entropy_with_logits(y, t, pos_weight=positive)


def one_hot_difference(y: Tensor, t: Tensor) -> Tensor:
    return torch.softmax(y, 1) - nn.functional.one_hot(t, 3).to(y.dtype)


def loss_bugs() -> Iterator[Planted]:
    yield loss_bug("mse-factor-two", mean_square, lambda g, y, t: (g * (y - t) / y.numel(), None), "scaled")
    yield loss_bug("mse-sum-for-mean", mean_square, lambda g, y, t: (g * 2 * (y - t), None), "scaled")
    yield loss_bug("mse-mean-over-batch-only", mean_square, lambda g, y, t: (g * 2 * (y - t) / len(y), None), "scaled")
    yield loss_bug("mse-sign", mean_square, lambda g, y, t: (g * 2 * (t - y) / y.numel(), None), "sign_flipped")
    plain = lambda g, y, t: (g * (torch.sigmoid(y) - t) / y.numel(), None)  # noqa: E731
    yield loss_bug("bce-positive-weight-forgotten", weighted_bce, plain, "slope")
    cross = nn.functional.cross_entropy
    yield loss_bug("cross-entropy-sum", cross, lambda g, y, t: (g * one_hot_difference(y, t), None), "scaled", True)
    yield loss_bug(
        "cross-entropy-without-target", cross, lambda g, y, t: (g * softmax(y) / len(y), None), "missing_term", True
    )
    huber = lambda y, t: nn.functional.huber_loss(y, t, delta=0.3)  # noqa: E731
    yield loss_bug("huber-never-linear", huber, lambda g, y, t: (g * (y - t) / y.numel(), None), "slope")
    ignores = lambda g, y, t: (2 * (y - t) / y.numel(), None)  # noqa: E731 - right only where g is 1
    yield loss_bug("loss-ignores-incoming-gradient", mean_square, ignores, "scaled", weight=0.5)
