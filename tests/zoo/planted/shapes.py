"""Mistakes in the backward of convolutions, pooling, shuffles and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.planted.row import (
    BIAS,
    FRONT,
    WEIGHT,
    Backward,
    HandWritten,
    Planted,
    Problem,
    formula,
    plant,
    sandwich,
    simple,
)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.conv1d(x.unflatten(1, (1, 5)), weight, bias)


def conv_backward(flip: bool = True, mean_bias: bool = False, reverse_weight: bool = False) -> Backward:
    """The backward of a one-channel convolution of width 3, with a choice of mistakes."""

    def backward(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        kernel = weight.transpose(0, 1)
        grad_x = nn.functional.conv1d(g, kernel.flip(2) if flip else kernel, padding=2).flatten(1)
        windows = x.unfold(1, 3, 1)
        grad_w = torch.einsum("bol,blk->ok", g, windows).unsqueeze(1)
        grad_b = g.sum((0, 2))
        return grad_x, grad_w.flip(2) if reverse_weight else grad_w, grad_b / g.shape[2] if mean_bias else grad_b

    return backward


def conv_bug(name: str, backward: Backward, wrong: tuple[str, ...], kinds: str) -> Planted:
    layer = formula(conv1d, backward, weight=(2, 1, 3), bias=(2,))
    return plant(name, sandwich(layer, 5, 6), wrong, kinds)


def pairs(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 2))


def shape_bugs() -> Iterator[Planted]:
    yield conv_bug("conv-kernel-not-flipped", conv_backward(flip=False), FRONT, "unknown")
    yield conv_bug("conv-weight-reversed", conv_backward(reverse_weight=True), WEIGHT, "permuted")
    yield conv_bug("conv-bias-mean-over-space", conv_backward(mean_bias=True), BIAS, "scaled")
    spread = lambda g, x: ((g / 2).repeat_interleave(2, 1),)  # noqa: E731 - a max pool's gradient, spread
    yield simple("max-pool-spreads-evenly", lambda x: pairs(x).amax(2), spread, width=4, out=2)
    undivided = lambda g, x: (g.repeat_interleave(2, 1),)  # noqa: E731
    yield simple("mean-pool-not-divided", lambda x: pairs(x).mean(2), undivided, "scaled", width=4, out=2)
    yield simple("roll-same-way", lambda x: x.roll(1, 1), lambda g, x: (g.roll(1, 1),), "permuted")
    yield simple("cumsum-not-reversed", lambda x: x.cumsum(1), lambda g, x: (g.cumsum(1),), "propagated")
    shuffled = torch.tensor([2, 0, 1])
    yield simple("gather-scattered-wrong", lambda x: x[:, shuffled], lambda g, x: (g[:, shuffled],), "permuted")


def token_problem(layer: Callable[[bool], nn.Module]) -> Callable[[bool], Problem]:
    """Token ids with repeats → layer → back."""

    def build(wrong: bool) -> Problem:
        torch.manual_seed(7)
        model = nn.Sequential()
        model.add_module("layer", layer(wrong))
        model.add_module("back", nn.Linear(2, 2))
        return Problem(model, squared_error, (torch.tensor([1, 3, 1, 0, 1]), torch.randn(5, 2)))

    return build


class Lookup(nn.Module):
    """An embedding by hand."""

    def __init__(self, backward: Backward | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2))
        self.derivative = backward

    def forward(self, tokens: Tensor) -> Tensor:
        if self.derivative is None:
            return self.weight[tokens] * 2**0.5
        return HandWritten.apply(lambda w, t: w[t] * 2**0.5, self.derivative, self.weight, tokens)


def last_one_wins(g: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, None]:
    found = torch.zeros_like(weight)
    for row, token in enumerate(tokens):
        found[token] = g[row] * 2**0.5
    return found, None


def unscaled(g: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, None]:
    return torch.zeros_like(weight).index_add(0, tokens, g), None


def averaged(g: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, None]:
    counts = torch.bincount(tokens, minlength=4).clamp(min=1)
    return unscaled(g * 2**0.5, weight, tokens)[0] / counts[:, None], None


def embedding_bugs() -> Iterator[Planted]:
    for name, backward, kind in (
        ("embedding-repeats-overwritten", last_one_wins, "partial"),
        ("embedding-scale-forgotten", unscaled, "scaled"),
        ("embedding-repeats-averaged", averaged, "partial"),
    ):
        yield plant(name, token_problem(lambda wrong, b=backward: Lookup(b if wrong else None)), WEIGHT, kind)
