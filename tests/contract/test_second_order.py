"""`second_order`: a double backward is right, refuses, or is found wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tests.contract.made_functions import drawn, function, tried
from torch_gradcheck import check_function

X, W = drawn(3, 4), drawn(3, 4, seed=1)


def _keep_input(ctx: Any, x: Any) -> Any:
    ctx.save_for_backward(x)
    return x.exp() * 2


def _keep_intermediate(ctx: Any, x: Any) -> Any:
    e = x.exp()
    ctx.save_for_backward(e)
    return e * 2


def _keep_output(ctx: Any, x: Any) -> Any:
    y = x.exp() * 2
    ctx.save_for_backward(y)
    return y


def _keep_detached(ctx: Any, x: Any) -> Any:
    ctx.x = x.detach()
    return x**3


def _keep_both(ctx: Any, x: Any, w: Any) -> Any:
    ctx.save_for_backward(x, w)
    return x**2 * w


def _numpy_cube(ctx: Any, x: Any) -> Any:
    ctx.save_for_backward(x)
    return x**3


def _by_numpy(ctx: Any, g: Any) -> Any:
    return torch.from_numpy(3 * ctx.saved_tensors[0].detach().numpy() ** 2 * g.detach().numpy())


def _scaled(ctx: Any, g: Any) -> Any:
    return _Doubled.apply(g, ctx.saved_tensors[0])


class _Doubled(torch.autograd.Function):
    """A backward whose own backward is off by one per cent for x."""

    @staticmethod
    def forward(ctx: Any, g: Any, x: Any) -> Any:
        ctx.save_for_backward(g, x)
        return g * 3 * x**2

    @staticmethod
    def backward(ctx: Any, u: Any) -> Any:
        g, x = ctx.saved_tensors
        return u * 3 * x**2, u * g * 6.06 * x


RIGHT = {
    "input kept": (function("Exp", _keep_input, lambda ctx, g: g * ctx.saved_tensors[0].exp() * 2), (X,)),
    "output kept": (function("Exp", _keep_output, lambda ctx, g: g * ctx.saved_tensors[0]), (X,)),
    "two inputs": (
        function(
            "Both",
            _keep_both,
            lambda ctx, g: (
                g * 2 * ctx.saved_tensors[0] * ctx.saved_tensors[1],
                g * ctx.saved_tensors[0] ** 2,
            ),
        ),
        (X, W),
    ),
    "linear": (function("Twice", lambda ctx, x: x * 2, lambda ctx, g: g * 2), (X,)),
    "relu at its kink": (torch.relu, (torch.tensor([0.0, 1.0, -1.0, 0.0]),)),
    "sort": (lambda x: x.sort().values ** 2, (X,)),
    "complex": (lambda z: (z * z.conj()).real * z.exp().abs(), (torch.complex(X, W),)),
    "module": (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), (X,)),
    "two outputs": (lambda x: (x.sin(), x.cumsum(0) ** 2), (X,)),
    "batch norm in training": (nn.BatchNorm1d(4), (X,)),
    "scales far apart": (torch.exp, (torch.tensor([1e-8, 1.0, 20.0]),)),
    "written in place": (lambda x: x.mul_(x.detach().clone() * 0 + 2).sin_(), (X,)),
}

REFUSING = {
    "once_differentiable": function(
        "Once", _keep_intermediate, once_differentiable(lambda ctx, g: g * ctx.saved_tensors[0] * 2)
    ),
    "numpy asked of a tensor with a graph": function(
        "Numpy", _numpy_cube, lambda ctx, g: torch.from_numpy(3 * ctx.saved_tensors[0].numpy() ** 2 * g.numpy())
    ),
    "an operation without a second derivative": lambda x: torch.cdist(x, x + 1),
}

WRONG = {
    "intermediate kept": (
        function("Exp", _keep_intermediate, lambda ctx, g: g * ctx.saved_tensors[0] * 2),
        ["by x is wrong", "Exp.backward at ", "autograd gives 0, where", "ctx.saved_tensors[0] of Exp"],
    ),
    "detached copy kept": (
        function("Cube", _keep_detached, lambda ctx, g: g * 3 * ctx.x**2),
        ["by x is wrong", "ctx.x of Cube"],
    ),
    "graph lost": (
        function("Cube", _numpy_cube, _by_numpy),
        ["by x, the gradient of output is wrong", "have no graph", "Cube.backward at "],
    ),
    "one per cent": (function("Cube", _numpy_cube, _scaled), ["by x is wrong"]),
    "raises a mistake": (
        function("Cube", _numpy_cube, lambda ctx, g: g * 3 * ctx.saved_tensors[0] ** (2 if g.grad_fn is None else "2")),
        ["raises TypeError", "test_second_order.py:"],
    ),
}


@pytest.mark.parametrize(("run", "inputs"), RIGHT.values(), ids=RIGHT)
def test_a_right_double_backward_passes(run: Any, inputs: Any) -> None:
    entry = tried("second_order", run, *inputs)
    assert entry.status == "passed", entry.message


@pytest.mark.parametrize("run", REFUSING.values(), ids=REFUSING)
def test_one_that_refuses_passes_and_says_so(run: Any) -> None:
    entry = tried("second_order", run, X)
    assert entry.status == "passed", entry.message
    assert entry.message.startswith("differentiating the backward raises, as it may: ")


@pytest.mark.parametrize(("run", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_one_fails_and_says_by_what(run: Any, words: list[str]) -> None:
    entry = tried("second_order", run, X)
    assert entry.status == "failed", entry.message
    for each in words:
        assert each in entry.message


def test_zero_equals_zero_is_said() -> None:
    assert tried("second_order", lambda x: x * 2, X).message == "the second derivative by what is on trial is 0"


def test_only_the_wrong_argument_is_named() -> None:
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x)
        ctx.w = w.detach()
        return x**2 * w

    run = function(
        "Both", forward, lambda ctx, g: (g * 2 * ctx.saved_tensors[0] * ctx.w, g * ctx.saved_tensors[0] ** 2)
    )
    entry = tried("second_order", run, X, W)
    assert "the derivative by w is wrong" in entry.message
    assert "ctx.w of Both" in entry.message


def test_held_values_stay() -> None:
    def detaching(x: Any) -> Any:
        return x * x.detach() ** 2

    assert tried("second_order", detaching, X).status == "failed"
    assert tried("second_order", detaching, X, hold_detached=True).status == "passed"


def test_of_integers_there_is_nothing_to_differentiate() -> None:
    entry = tried("second_order", lambda x: x.detach() * 2, X)
    assert (entry.status, entry.message) == ("not_applicable", "no output has a gradient")


def test_in_float32() -> None:
    right, wrong = RIGHT["two inputs"][0], WRONG["intermediate kept"][0]
    assert tried("second_order", right, X, W, dtype=torch.float32).status == "passed"
    assert tried("second_order", wrong, X, dtype=torch.float32).status == "failed"


SATURATED = {
    "tanh": lambda x: (100 * x).tanh(),
    "softmax": lambda x: (100 * x).softmax(1),
    "a small softmax": lambda x: 1e-20 * (100 * x).softmax(1),
    "gelu": lambda x: nn.functional.gelu(-30 * x.abs()),
    "numbers that underflow": lambda x: (x - 740).exp(),
}


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("run", SATURATED.values(), ids=SATURATED)
def test_what_is_below_rounding_is_not_wrong(run: Any, seed: int) -> None:
    assert tried("second_order", run, drawn(3, 4, seed=seed)).status in {"passed", "not_applicable"}


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e20])
def test_a_wrong_one_is_found_at_any_size(size: float) -> None:
    run = function("Cube", _numpy_cube, _scaled)
    assert tried("second_order", lambda x: size * run(x), X).status == "failed"


class _InFloat32(torch.autograd.Function):
    """g · cos x with a cosine that numpy computes in float32; its own backward is right."""

    @staticmethod
    def forward(ctx: Any, g: Any, x: Any) -> Any:
        ctx.save_for_backward(g, x)
        return g * torch.from_numpy(np.cos(x.numpy().astype(np.float32)).astype(np.float64))

    @staticmethod
    def backward(ctx: Any, u: Any) -> Any:
        g, x = ctx.saved_tensors
        return u * x.cos(), -u * g * x.sin()


def _sine(ctx: Any, x: Any) -> Any:
    ctx.save_for_backward(x)
    return x.sin()


IN_FLOAT32 = {
    "a product": (lambda ctx, g: (g.float() * ctx.saved_tensors[0].float().cos()).to(g.dtype), "passed"),
    "what it returns": (lambda ctx, g: (g * ctx.saved_tensors[0].cos()).float(), "passed"),
    "out of sight": (lambda ctx, g: _InFloat32.apply(g, *ctx.saved_tensors), "not_applicable"),
}


@pytest.mark.parametrize(("backward", "status"), IN_FLOAT32.values(), ids=IN_FLOAT32)
def test_a_backward_in_float32_is_not_wrong(backward: Any, status: str) -> None:
    entry = tried("second_order", function("Sine", _sine, backward), X)
    assert entry.status == status, entry.message


def test_it_is_said_where_the_gradient_itself_is_wrong() -> None:
    def forward(ctx: Any, x: Any) -> Any:
        y = x.softmax(1)
        ctx.save_for_backward(y)
        return y

    run = function("Softmax", forward, lambda ctx, g: g * ctx.saved_tensors[0])
    follows = "is wrong, as it may be where the gradient itself is wrong. Along"
    assert follows in next(each for each in check_function(run, (X,)).contract if each.name == "second_order").message
    assert "as it may" not in tried("second_order", WRONG["one per cent"][0], X).message
