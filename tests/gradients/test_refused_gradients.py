"""Backwards that torch does not take: told with line, argument, module and shapes; what they raise comes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck import GradientMonitor, check_closure, check_function, check_module
from torch_gradcheck.errors import MisfitError

X, W = torch.ones(3, 4), torch.full((3, 4), 2.0)


def product(backward: Callable[..., Any]) -> type[Function]:
    """The product of two tensors and a number, with another backward."""

    def forward(ctx: Any, x: Tensor, k: float, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * k * w

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Product", (Function,), methods)


def right(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    x, w = ctx.saved_tensors
    return 0.5 * grad * w, None, 0.5 * grad * x


def summed(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    return grad, None, grad.sum(0)


def refused(backward: Callable[..., Any], check: Callable[[Any], object] | None = None) -> str:
    """What the error says that a check of the product raises; it is raised from torch's own."""
    apply = product(backward).apply
    with pytest.raises(MisfitError) as caught:
        check(apply) if check is not None else check_function(apply, (X, 0.5, W))
    cause = caught.value.__cause__
    assert type(cause) in (RuntimeError, TypeError, NotImplementedError)
    assert str(cause) in str(caught.value)
    return str(caught.value)


def line_of(function: Callable[..., Any]) -> str:
    return f"Product.backward at tests/gradients/test_refused_gradients.py:{function.__code__.co_firstlineno}"


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (summed, ("returned for w a gradient of shape (4,)", "w has shape (3, 4)")),
        (lambda _, g: (g[:, :1], None, g), ("returned for x a gradient of shape (3, 1)", "x has shape (3, 4)")),
        (lambda _, g: g, ("returned 1 gradient,", "forward takes 3 arguments (x, k, w)")),
        (lambda _, g: (g, None, g, g), ("returned 4 gradients,", "forward takes 3 arguments (x, k, w)")),
        (lambda _, g: [g, None, g], ("returned a list, which counts as one gradient,", "as a tuple")),
        (lambda _, g: None, ("returned None, which counts as one gradient,",)),
        (lambda _, g: (g.numpy(), None, g), ("a numpy array of shape (3, 4) as the gradient of x",)),
        (lambda _, g: (g, None, 1), ("an int as the gradient of w",)),
        (lambda _, g: (g, g, g), ("a tensor of shape (3, 4) as the gradient of k, which needs none",)),
        (lambda _: None, ("has the signature (_)", "with ctx and 1 gradient,")),
        (lambda _, g, h: (g, None, g), ("has the signature (_, g, h)", "with ctx and 1 gradient,")),
    ],
    ids=["shape", "to expand", "one", "four", "list", "none", "array", "number", "of a number", "of nothing", "of two"],
)
def test_what_torch_does_not_take_is_told(backward: Callable[..., Any], words: tuple[str, ...]) -> None:
    said = refused(backward)
    assert said.startswith(line_of(backward))
    for each in words:
        assert each in said


def test_a_function_without_backward() -> None:
    class Half(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 0.5

    with pytest.raises(MisfitError, match=r"Half has no backward.*def backward\(ctx, grad\)"):
        check_function(Half.apply, (X,))


class Net(nn.Module):
    """A layer, and a product with a weight of its own."""

    def __init__(self, apply: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = Layer(apply)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, apply: Callable[..., Tensor]) -> None:
        super().__init__()
        self.w, self.apply_product = nn.Parameter(W.clone()), apply

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_product(x, 0.5, self.w)


def by_closure(apply: Any) -> None:
    net = Net(apply)

    def closure() -> Tensor:
        loss = net(X).sum()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    check_closure(net, closure)


CHECKS: dict[str, Callable[[Any], object]] = {
    "module": lambda apply: check_module(Net(apply), torch.sum, X),
    "a closure's own": by_closure,
    "second order": lambda apply: check_module(Net(apply), torch.sum, X, order=2),
    "held": lambda apply: check_module(Net(apply), torch.sum, X, hold_detached=True),
    "candidate": lambda apply: check_module(Net(apply), torch.sum, X, reference=Net(apply)),
    "monitor": lambda apply: GradientMonitor(Net(apply), torch.sum).step(X),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_names_the_module(check: Callable[[Any], object]) -> None:
    said = refused(summed, check)
    assert said.startswith(f"{line_of(summed)}, of 'last' (Layer), returned for w a gradient of shape (4,)")


def test_gradients_that_torch_takes_are_no_error() -> None:
    """Autograd sums a gradient over the dimensions that broadcasting has added, as of a row."""
    assert check_function(product(right).apply, (X, 0.5, W)).passed

    class Shifted(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, row: Tensor) -> Tensor:
            return x + row

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            return grad, grad

    assert not check_function(Shifted.apply, (X, torch.ones(1, 4))).mismatches


@pytest.mark.parametrize(
    "error", [RuntimeError("function F returned an incorrect number of gradients (expected 2, got 1)"), TypeError("g")]
)
def test_what_a_backward_raises_itself_comes_through(error: Exception) -> None:
    def raises(ctx: Any, grad: Tensor) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        check_function(product(raises).apply, (X, 0.5, W))
    assert caught.value is error


def test_torchs_words_on_operations_of_a_backward_come_through() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        check_function(product(lambda _, grad: (grad @ grad, None, grad)).apply, (X, 0.5, W))
    assert type(caught.value) is RuntimeError


def test_a_gradient_that_a_hook_changes_is_none_of_the_backwards() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        y = product(right).apply(x, 0.5, w)
        y.grad_fn.register_hook(lambda left, _: (left[0].sum(0), *left[1:]))
        return y  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match=r"hook .* has changed the size") as caught:
        check_function(function, (X, W))
    assert type(caught.value) is RuntimeError
