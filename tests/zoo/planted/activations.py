"""Mistakes in the backward of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.zoo.planted.row import Backward, Planted, simple


def slope(derivative: Callable[[Tensor], Tensor]) -> Backward:
    return lambda g, x: (g * derivative(x),)


def tanh_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(3 * x, approximate="tanh")


def exact_gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-9 * x * x / 2) / (2 * torch.pi) ** 0.5
    return 3 * ((1 + torch.erf(3 * x / 2**0.5)) / 2 + 3 * x * density)


def activation_bugs() -> Iterator[Planted]:
    yield simple("tanh-not-squared", torch.tanh, slope(lambda x: 1 - torch.tanh(x)), "slope")
    yield simple("sigmoid-of-the-input", torch.sigmoid, slope(lambda x: x * (1 - x)), "slope")
    yield simple("relu-passes-all", torch.relu, lambda g, x: (g,), "unmasked")
    yield simple("relu-guided", torch.relu, lambda g, x: (g.clamp(min=0) * (x > 0),), "slope")
    yield simple("leaky-relu-dead-side", nn.LeakyReLU(0.1), lambda g, x: (g * (x > 0),), "slope")
    yield simple("gelu-tanh-with-exact-slope", tanh_gelu, slope(exact_gelu_slope), "slope")
    yield simple("silu-term-missing", nn.functional.silu, slope(torch.sigmoid), "slope")
    softplus = lambda x: nn.functional.softplus(x, beta=2.0)  # noqa: E731 - a formula
    yield simple("softplus-beta-forgotten", softplus, slope(torch.sigmoid), "slope")
    yield simple(
        "elu-wrong-side", nn.functional.elu, slope(lambda x: torch.where(x > 0, 1.0, nn.functional.elu(x))), "slope"
    )
    yield simple("square-factor-missing", torch.square, slope(lambda x: x), "scaled")
    yield simple("gradient-reversal-left-in", lambda x: x * 1.0, lambda g, x: (-g,), "sign_flipped")
    yield simple("straight-through-round", lambda x: torch.round(4 * x) / 4, lambda g, x: (g,), "spurious")
    yield simple("straight-through-clamp", lambda x: x.clamp(-0.4, 0.4), lambda g, x: (g,), "unmasked")
    yield simple("noisy-gradient", torch.tanh, lambda g, x: (g * (1 - torch.tanh(x) ** 2) + 1e-3 * torch.sin(1e3 * x),))
