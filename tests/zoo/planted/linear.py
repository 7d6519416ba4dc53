"""Mistakes in the backward of a linear layer, down to one entry wrong by 1 %."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.zoo.planted.row import BIAS, FRONT, WEIGHT, Backward, Planted, formula, plant, sandwich


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


def linear_gradients(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return g @ weight, g.T @ x, g.sum(0)


def one_part(part: int, spoil: Callable[[Tensor], Tensor]) -> Backward:
    """The linear layer's backward with one of its three gradients (0 input, 1 weight, 2 bias) spoiled."""

    def backward(*saved: Tensor) -> tuple[Tensor, ...]:
        gradients = list(linear_gradients(*saved))
        gradients[part] = spoil(gradients[part])
        return tuple(gradients)

    return backward


def linear_bug(name: str, backward: Backward, wrong: tuple[str, ...], kinds: str, width: int = 3) -> Planted:
    layer = formula(linear, backward, weight=(width, width), bias=(width,))
    return plant(name, sandwich(layer, width), wrong, kinds)


def multiplied_entry(index: tuple[int, ...], factor: float) -> Callable[[Tensor], Tensor]:
    def spoil(g: Tensor) -> Tensor:
        scale = torch.ones_like(g)
        scale[index] = factor
        return g * scale

    return spoil


def largest_entry_off(relative: float) -> Callable[[Tensor], Tensor]:
    def spoil(g: Tensor) -> Tensor:
        flat = g.flatten().clone()
        flat[flat.abs().argmax()] *= 1 + relative
        return flat.view_as(g)

    return spoil


def in_half(g: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    """A backward through numpy float16."""
    low = [t.detach().cpu().numpy().astype("float16") for t in (g, *saved)]
    g16, x, weight, _ = low
    found = (g16 @ weight, g16.T @ x, g16.sum(0))
    return tuple(torch.from_numpy(each.astype("float64")).to(g) for each in found)


def linear_bugs() -> Iterator[Planted]:
    yield linear_bug("weight-half", one_part(1, lambda g: g / 2), WEIGHT, "scaled")
    yield linear_bug("weight-twice", one_part(1, lambda g: g * 2), WEIGHT, "scaled")
    yield linear_bug("weight-sign", one_part(1, torch.neg), WEIGHT, "sign_flipped")
    yield linear_bug("weight-transposed", one_part(1, lambda g: g.T.contiguous()), WEIGHT, "transposed")
    yield linear_bug("weight-rows-permuted", one_part(1, lambda g: g[[2, 0, 1]]), WEIGHT, "permuted")
    yield linear_bug("weight-columns-rolled", one_part(1, lambda g: g.roll(1, 1)), WEIGHT, "permuted")
    yield linear_bug("weight-one-entry-1-percent", one_part(1, largest_entry_off(0.01)), WEIGHT, "partial")
    yield linear_bug("weight-off-by-0.01-percent", one_part(1, lambda g: g * 1.0001), WEIGHT, "scaled")
    yield linear_bug("weight-last-row-zero", one_part(1, multiplied_entry((-1,), 0.0)), WEIGHT, "partial")
    last_column = multiplied_entry((slice(None), -1), 0.0)
    yield linear_bug("weight-last-column-zero", one_part(1, last_column), WEIGHT, "partial")
    yield linear_bug("weight-bfloat16", one_part(1, lambda g: g.bfloat16().to(g.dtype)), WEIGHT, "low_precision")
    yield linear_bug("weight-clamped", one_part(1, lambda g: g.clamp(-0.05, 0.05)), WEIGHT, "clipped")
    yield linear_bug("bias-missing", one_part(2, torch.zeros_like), BIAS, "missing")
    yield linear_bug("bias-none", _no_bias_gradient, BIAS, "missing")
    yield linear_bug("bias-mean-for-sum", lambda g, x, w, b: (g @ w, g.T @ x, g.mean(0)), BIAS, "scaled")
    yield linear_bug("bias-first-row-only", lambda g, x, w, b: (g @ w, g.T @ x, g[0]), BIAS, "wrong_sum")
    square = lambda g, x, w, b: (g @ w, g.T @ x, g.sum(1))  # noqa: E731 - five features and five rows: it fits
    yield linear_bug("bias-summed-over-features", square, BIAS, "wrong_sum", width=5)
    yield linear_bug("input-untransposed", lambda g, x, w, b: (g @ w.T, g.T @ x, g.sum(0)), FRONT, "unknown")
    yield linear_bug("all-in-half", in_half, FRONT + WEIGHT + BIAS, "low_precision")
    yield linear_bug("all-divided-by-batch", _mean_twice, FRONT + WEIGHT + BIAS, "scaled")
    yield linear_bug("stale-input", lambda g, x, w, b: (g @ w, g.T @ x.roll(1, 0), g.sum(0)), WEIGHT, "unknown")


def _no_bias_gradient(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
    return g @ w, g.T @ x, None


def _mean_twice(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return linear_gradients(g / len(g), x, w, b)
