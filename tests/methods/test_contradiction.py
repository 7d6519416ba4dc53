"""What J contradicts is found for all tensors at once, in few evaluations; the rest is left to a closer look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sweeps import in_turn
from torch_gradcheck import Report, check_closure, check_module

FEW = 120
"""Evaluations, the search for the culprit included, that a mistake may cost in whatever model."""


class Times(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


class ReluFromZeroOn(torch.autograd.Function):
    """ReLU with the slope 1 at 0, as right as torch's 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0] >= 0)


class Net(nn.Module):
    """Three layers; the gradient that arrives at the first activation's output is multiplied by `factor`."""

    def __init__(self, activation: Callable[..., Tensor], factor: float = 1.0, *, branches: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.activation, self.factor, self.branches = activation, factor, branches

    def forward(self, x: Tensor) -> Tensor:
        h = Times.apply(self.activation(self.a(x)), self.factor)
        if self.branches and sum(h.detach().flatten().tolist()) > 1e9:  # no record of J can be made
            return x
        return torch.as_tensor(self.c(self.activation(self.b(h))))


def batch(rows: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=generator), torch.arange(rows) % 3


def checked(model: nn.Module, data: Any = None, **options: Any) -> Report:
    return check_module(model, F.cross_entropy, data or batch(), progress=False, **options)


def wrong(report: Report) -> set[str]:
    return {row.name for row in report.mismatches}


UPSTREAM = {"a.weight", "a.bias"}


@pytest.mark.parametrize("branches", [False, True], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("activation", [torch.tanh, torch.relu, F.gelu], ids=["tanh", "relu", "gelu"])
@pytest.mark.parametrize("factor", [1.05, 1.0001, -1.0, 0.0])
def test_a_mistake_costs_few_evaluations(factor: float, activation: Callable[..., Tensor], branches: bool) -> None:
    right = checked(Net(activation, branches=branches))
    report = checked(Net(activation, factor, branches=branches))
    assert right.passed
    assert wrong(report) == UPSTREAM
    assert all(row.mismatched == row.checked or activation is torch.relu for row in report.mismatches)
    assert report.evaluations <= right.evaluations + FEW


def at_kinks(activation: Callable[..., Tensor], factor: float = 1.0, *, branches: bool) -> tuple[nn.Module, Any]:
    """Zero biases and a row of zeros: every unit of that row lies at its kink, in two layers."""
    model = Net(activation, factor, branches=branches)
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.bias.zero_()
    x, t = batch()
    x[:2] = 0
    return model, (x, t)


CONVENTIONS = pytest.mark.parametrize(
    "activation", [torch.relu, ReluFromZeroOn.apply], ids=["0 at the kink", "1 at the kink"]
)


@CONVENTIONS
@pytest.mark.parametrize("branches", [False, True], ids=["recorded", "not recorded"])
def test_no_choice_of_slope_at_a_kink_is_accused(activation: Callable[..., Tensor], branches: bool) -> None:
    report = checked(*at_kinks(activation, branches=branches))
    assert report.passed, str(report)


@CONVENTIONS
@pytest.mark.parametrize("branches", [False, True], ids=["recorded", "not recorded"])
def test_kinks_hide_no_mistake(activation: Callable[..., Tensor], branches: bool) -> None:
    report = checked(*at_kinks(activation, 1.05, branches=branches))
    assert wrong(report) >= {"a.weight"}
    assert wrong(report) <= UPSTREAM


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_tensor_that_is_right_is_not_accused_with_those_that_are_wrong(method: str) -> None:
    """Gradients given by hand, of which three are wrong by very different amounts."""
    model = Net(torch.tanh).double()
    x, t = batch()
    F.cross_entropy(model(x.double()), t).backward()
    given = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    given["a.weight"] *= 1.001
    given["b.bias"][2] = 1e6
    given["c.weight"] *= -1
    report = checked(model, gradients=given, method=method)
    assert wrong(report) == {"a.weight", "b.bias", "c.weight"}, str(report)
    assert report["b.bias"].mismatched == 1


def test_errors_that_cancel_along_a_direction_are_found() -> None:
    """One factor is as much too large as the other is too small."""
    model = Net(torch.tanh).double()
    model.a.weight.register_hook(lambda g: 1.01 * g)
    model.b.weight.register_hook(lambda g: 0.99 * g)
    assert wrong(checked(model)) == {"a.weight", "b.weight"}


def test_a_straight_through_estimator_is_told_as_before() -> None:
    """J climbs stairs of a width that the largest steps see; the gradient is that of the ramp through them."""
    layer = nn.Linear(3, 2).double()

    def closure() -> Tensor:
        y = layer(torch.ones(4, 3, dtype=torch.float64))
        return (y + (torch.round(1e6 * y) / 1e6 - y).detach()).square().mean()

    report = check_closure(layer, closure, progress=False)
    assert str(report["weight"].status) in ("undecided", "match")


# Parts of J in float32, out of sight -----------------------------------------------------------------------------


class Kernel(torch.autograd.Function):
    """A function as a kernel computes it that knows float32 only; numpy, so that no cast can be overridden."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, factor: float, dtype: Any) -> Tensor:
        ctx.kind, ctx.factor = kind, factor
        ctx.save_for_backward(x)
        return torch.from_numpy(np.asarray(FORWARD[kind](x.detach().numpy().astype(dtype)), dtype=np.float64))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(BACKWARD[ctx.kind](leaf), leaf, grad)
        return ctx.factor * slope, None, None, None


def rms_norm(x: Any) -> Any:
    return x / (np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-5)) ** np.float32(0.5)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


FORWARD: dict[str, Callable[[Any], Any]] = {
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softmax": softmax,
    "rms norm": rms_norm,
    "scan": lambda x: np.cumsum(x, axis=-1, dtype=x.dtype),
}
BACKWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": F.silu,
    "softmax": lambda x: x.softmax(-1),
    "rms norm": lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
    "scan": lambda x: x.cumsum(-1),
}


def with_kernel(kind: str, factor: float, dtype: Any, seed: int = 0) -> Report:
    def through(x: Tensor) -> Tensor:
        return torch.as_tensor(Kernel.apply(x, kind, factor, dtype))

    torch.manual_seed(seed)
    first, last = nn.Linear(5, 8), nn.Linear(8, 3)
    model = nn.Sequential(first, nn.Identity(), last)
    model[1].register_forward_hook(lambda module, given, y: through(y))
    data = (torch.randn(8, 5), torch.arange(8) % 3)
    return checked(model, data, tolerance=1e-3)


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize(("kind", "seed"), in_turn([(kind,) for kind in FORWARD], [(seed,) for seed in range(4)]))
def test_a_kernel_in_float32_is_decided_by_large_steps(kind: str, seed: int) -> None:
    right, spoiled = (with_kernel(kind, factor, np.float32, seed) for factor in (1.0, 1.05))
    assert {str(row.status) for row in right} == {"match"}, str(right)
    assert wrong(spoiled) == {"0.weight", "0.bias"}, str(spoiled)
    assert spoiled.culprit == "1"
    assert right.evaluations <= 3 * with_kernel(kind, 1.0, np.float64, seed).evaluations
    assert spoiled.evaluations <= 2 * right.evaluations
