"""Mistakes in the backwards of normalisations and activations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo.planted.normalisations import layer_norm, layer_norm_backward, rms_norm, rms_norm_without_projection
from tests.zoo.planted.row import (
    FRONT,
    Planted,
    formula,
    plant,
    sandwich,
)
from tests.zoo.real_mistakes.models import upstream


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, -1)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def batch_norm(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)


def group_norm(x: Tensor) -> Tensor:
    return F.group_norm(x, 1)


def instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x)


def spread(x: Tensor, *axes: int) -> Tensor:
    return torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + 1e-5)


_NORMED = "projection"
"""J does not depend on a bias before a batch normalisation."""


def normalisations() -> Iterator[Planted]:
    yield upstream("softmax, no sum", "projection", softmax, lambda g, x: (g * softmax(x),))
    yield upstream(
        "softmax over channels, no sum", "projection", lambda x: torch.softmax(x, 1), _softmax_over_1, 12, shape=(4, 3)
    )
    yield upstream("log-softmax, no sum", "projection", log_softmax, lambda g, x: (g,))
    yield upstream("log-softmax, sum not taken", "projection", log_softmax, lambda g, x: (g - softmax(x),))
    for name, backward in (
        ("mean", layer_norm_backward(mean_term=False)),
        ("variance", layer_norm_backward(variance_term=False)),
        ("both", layer_norm_backward(False, False)),
    ):
        layer = formula(layer_norm, backward, weight=(4,), bias=(4,))
        yield plant(f"layer norm, no {name} term", sandwich(layer, 4), FRONT, "projection")
    rms = formula(rms_norm, rms_norm_without_projection, weight=(4,))
    yield plant("rms norm, no projection", sandwich(rms, 4), FRONT, "projection")
    yield upstream("batch norm, statistics constant", _NORMED, batch_norm, lambda g, x: (g / spread(x, 0),))
    yield upstream("group norm, statistics constant", "projection", group_norm, _of_group, 12, shape=(3, 4))
    yield upstream("instance norm, statistics constant", "projection", instance_norm, _of_instance, 12, shape=(3, 4))
    yield upstream(
        "unit length, no projection", "projection", F.normalize, lambda g, x: (g / x.norm(dim=-1, keepdim=True),)
    )
    yield upstream("centring, mean not taken out", "projection", centred, lambda g, x: (g,))
    yield plant(
        "weight norm, no projection",
        sandwich(formula(_weight_norm, _weight_norm_plain, v=(4, 4)), 4),
        ("layer.v",),
        "projection",
    )


def _softmax_over_1(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g * torch.softmax(x, 1),)


def _of_group(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g / spread(x, 1, 2),)


def _of_instance(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g / spread(x, 2),)


def _weight_norm(x: Tensor, v: Tensor) -> Tensor:
    return x @ (v / v.norm(dim=1, keepdim=True)).T


def _weight_norm_plain(g: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    norm = v.norm(dim=1, keepdim=True)
    return g @ (v / norm), g.T @ x / norm


def activations() -> Iterator[Planted]:
    inner = 0.7978845608028654

    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def exact_slope(g: Tensor, x: Tensor) -> tuple[Tensor]:
        return (g * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)),)

    def without_cube(g: Tensor, x: Tensor) -> tuple[Tensor]:
        t = torch.tanh(inner * (x + 0.044715 * x**3))
        return (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner),)

    sigmoid = torch.sigmoid
    yield upstream("gelu by tanh, slope of the exact one", "slope", gelu, exact_slope)
    yield upstream("gelu by tanh, cube forgotten", "slope", gelu, without_cube)
    yield upstream("silu, second term missing", "slope", F.silu, lambda g, x: (g * sigmoid(x),))
    yield upstream("tanh, not squared", "slope", torch.tanh, lambda g, x: (g * (1 - torch.tanh(x)),))
    yield upstream("softplus, beta forgotten", "slope", lambda x: F.softplus(x, beta=3), lambda g, x: (g * sigmoid(x),))
    yield upstream("leaky relu, no leak", "slope", lambda x: F.leaky_relu(x, 0.2), lambda g, x: (g * (x > 0),))
    yield upstream("elu, by the input", "slope", F.elu, lambda g, x: (torch.where(x > 0, g, g * (x + 1)),))
    yield upstream(
        "square, factor forgotten for some", "slope", lambda x: x.relu() ** 2 + x, lambda g, x: (g * (x.relu() + 1),)
    )
    yield upstream("relu, not masked", "unmasked", torch.relu, lambda g, x: (g,))
    yield upstream("clamp, not masked", "unmasked", lambda x: x.clamp(-0.3, 0.3), lambda g, x: (g,))
    yield upstream("hard shrink, not masked", "unmasked", lambda x: F.hardshrink(x, 0.2), lambda g, x: (g,))
    yield upstream("round, straight through", "spurious", torch.round, lambda g, x: (g,))
