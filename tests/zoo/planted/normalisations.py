"""Mistakes in the backward of softmax and of normalisations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.zoo.planted.row import BIAS, FRONT, WEIGHT, Backward, Planted, formula, plant, sandwich, simple


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
    return (x - x.mean(-1, keepdim=True)) / scale, scale


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return standardised(x)[0] * weight + bias


def layer_norm_backward(
    mean_term: bool = True, variance_term: bool = True, weight_input: bool = False, sum_bias: bool = True
) -> Backward:
    """LayerNorm's backward with a choice of what to forget."""

    def backward(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y, scale = standardised(x)
        gy = g * weight
        right = gy - gy.mean(-1, keepdim=True) * mean_term - y * (gy * y).mean(-1, keepdim=True) * variance_term
        grad_bias = g.sum(0) if sum_bias else g.mean(0)
        return right / scale, (g * (x if weight_input else y)).sum(0), grad_bias

    return backward


def norm_bug(name: str, backward: Backward, wrong: tuple[str, ...], kinds: str = "unknown") -> Planted:
    layer = formula(layer_norm, backward, weight=(4,), bias=(4,))
    return plant(name, sandwich(layer, 4), wrong, kinds)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def rms_norm_without_projection(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    scale = torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)
    return g * weight / scale, (g * x / scale).sum(0)


def unit_length(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class BatchNormed(nn.Module):
    """Batch normalisation by hand; wrong: its statistics are taken under no_grad."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.rand(3) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.wrong):
            mean, variance = x.mean(0), x.var(0, unbiased=False)
        return torch.tanh((x - mean) / torch.sqrt(variance + 1e-5) * self.weight)


class WeightNormed(nn.Module):
    """w = g · v / ‖v‖; wrong: the norm is detached, so v's gradient keeps its part along v."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.g = nn.Parameter(torch.rand(3, 1) + 0.5)
        self.v = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.v.norm(dim=1, keepdim=True)
        return x @ (self.g * self.v / (norm.detach() if self.wrong else norm)).T


def normalisation_bugs() -> Iterator[Planted]:
    yield simple("softmax-without-coupling", softmax, lambda g, x: (g * softmax(x),), "projection")
    diagonal = lambda g, x: (g * softmax(x) * (1 - softmax(x)),)  # noqa: E731 - the diagonal of the Jacobian alone
    yield simple("softmax-diagonal-only", softmax, diagonal)
    yield simple(
        "log-softmax-without-sum", lambda x: torch.log_softmax(x, -1), lambda g, x: (g - softmax(x),), "projection"
    )
    yield norm_bug("layer-norm-without-mean-terms", layer_norm_backward(False, False), FRONT, "projection")
    yield norm_bug("layer-norm-without-mean-term", layer_norm_backward(mean_term=False), FRONT, "projection")
    yield norm_bug("layer-norm-without-variance-term", layer_norm_backward(variance_term=False), FRONT, "projection")
    yield norm_bug("layer-norm-weight-from-input", layer_norm_backward(weight_input=True), WEIGHT, "wrong_sum")
    yield norm_bug("layer-norm-bias-averaged", layer_norm_backward(sum_bias=False), BIAS, "scaled")
    rms = formula(rms_norm, rms_norm_without_projection, weight=(4,))
    yield plant("rms-norm-without-projection", sandwich(rms, 4), FRONT, "projection")
    yield simple(
        "unit-length-without-projection", unit_length, lambda g, x: (g / x.norm(dim=-1, keepdim=True),), "projection"
    )
    yield plant(
        "batch-norm-statistics-detached",
        sandwich(BatchNormed),
        FRONT,
        {"front.weight": "detached", "front.bias": "spurious"},
    )
    yield plant("weight-norm-detached", sandwich(WeightNormed), ("layer.v",), "projection")
