"""A planted mistake as a row of the table, and the small models that most of them sit in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error

Backward = Callable[..., tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Problem:
    """What `check_module` is called with."""

    model: nn.Module
    loss_fn: Callable[..., Tensor]
    batch: Any
    gradients: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Planted:
    """A mistake.

    Attributes:
        build: makes the problem with the mistake (True), or its correct twin (False).
        wrong: the names whose gradient the mistake spoils.
        kinds: the diagnosis of each wrong name, or one for all of them.
        culprit: the innermost module whose own backward is wrong; None where no module is (hand-written gradients).
        mode: the mode of the check in which the mistake shows.
    """

    id: str
    build: Callable[[bool], Problem]
    wrong: tuple[str, ...]
    kinds: str | Mapping[str, str]
    culprit: str | None
    mode: str = "eval"

    def kind_of(self, name: str) -> str:
        """The diagnosis of a wrong name."""
        return self.kinds if isinstance(self.kinds, str) else self.kinds[name]


FRONT = ("front.weight", "front.bias")
LAYER = "layer"
WEIGHT, BIAS = ("layer.weight",), ("layer.bias",)


def plant(
    name: str,
    build: Callable[[bool], Problem],
    wrong: tuple[str, ...],
    kinds: str | Mapping[str, str] = "unknown",
    culprit: str | None = LAYER,
    mode: str = "eval",
) -> Planted:
    """A row; the culprit is the layer of a sandwich unless something else is named."""
    return Planted(name, build, wrong, kinds, culprit, mode)


class HandWritten(torch.autograd.Function):
    """A forward with a backward written by hand: backward(g, *inputs) is a gradient for each input."""

    @staticmethod
    def forward(ctx: Any, forward: Callable[..., Tensor], backward: Backward, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.formula = backward
        return forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.formula(grad, *ctx.saved_tensors))


class Layer(nn.Module):
    """forward(x, *parameters); with a `backward`, it is used in place of autograd's own."""

    def __init__(self, forward: Callable[..., Tensor], backward: Backward | None, **parameters: Tensor) -> None:
        super().__init__()
        self.formula = forward
        self.derivative = backward
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        if self.derivative is None:
            return self.formula(x, *self.parameters())
        return HandWritten.apply(self.formula, self.derivative, x, *self.parameters())


class Sandwich(nn.Module):
    """Front → layer → back: a mistake in the layer's input gradient spoils front, never back."""

    def __init__(self, layer: nn.Module, inputs: int, width: int, out: int) -> None:
        super().__init__()
        self.front = nn.Linear(inputs, width)
        self.layer = layer
        self.back = nn.Linear(out, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.layer(self.front(x)).flatten(1))


def sandwich(layer: Callable[[bool], nn.Module], width: int = 3, out: int | None = None) -> Callable[[bool], Problem]:
    """A builder of front → layer → back under a squared error, on five random rows."""

    def build(wrong: bool) -> Problem:
        torch.manual_seed(7)
        model = Sandwich(layer(wrong), 3, width, width if out is None else out)
        return Problem(model, squared_error, (torch.randn(5, 3), torch.randn(5, 2)))

    return build


def formula(forward: Callable[..., Tensor], backward: Backward, **shapes: tuple[int, ...]) -> Callable[[bool], Layer]:
    """A layer whose backward is the given one when wrong, autograd's when right."""

    def make(wrong: bool) -> Layer:
        parameters = {name: torch.randn(shape) for name, shape in shapes.items()}
        return Layer(forward, backward if wrong else None, **parameters)

    return make


def simple(
    name: str, forward: Callable[..., Tensor], backward: Backward, kinds: str = "unknown", **more: Any
) -> Planted:
    """A layer without parameters whose input gradient is wrong."""
    width, out = more.pop("width", 3), more.pop("out", None)
    return plant(name, sandwich(formula(forward, backward), width, out), FRONT, kinds, **more)
