"""Backwards that torch does not take: told with line, argument, module and shapes; what they raise comes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck import GradientMonitor, blind_spots, check_closure, check_function, check_module, gradcheck
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
    cause = cause.__cause__ if isinstance(cause, MisfitError) else cause  # what is said of a reference says so
    assert type(cause) in (RuntimeError, TypeError, NotImplementedError)
    assert str(cause).splitlines()[0].partition(".  (Could")[0].rstrip(".") in str(caught.value)
    return str(caught.value)


def line_of(function: Callable[..., Any]) -> str:
    return f"Product.backward at tests/gradients/test_refused_gradients.py:{function.__code__.co_firstlineno}"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
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
        (
            lambda _, g: (g, None, g * 1j),
            ("for w a gradient that is complex", "w is torch.float64"),
        ),
        (lambda _, g: (g, None, Tensor), ("returned a _TensorMeta as the gradient of w",)),
        (lambda _, g: (torch.nested.nested_tensor([g[0]]), None, g), ("for x a gradient that is nested",)),
    ],
    ids=[
        *(
            "shape",
            "to expand",
            "one",
            "four",
            "list",
            "none",
            "array",
            "number",
            "of a number",
            "of nothing",
            "of two",
        ),
        *("complex", "class", "nested"),
    ],
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

    for order in (1, 2):
        with pytest.raises(MisfitError, match="Half has no backward"):
            check_function(Half.apply, (X,), order=order)


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
    "projected": lambda apply: check_module(Net(apply), torch.sum, X, method="projected"),
    "in .grad": lambda apply: check_module(Net(apply), torch.sum, X, gradients="grad"),
    "blind spots": lambda apply: blind_spots(Net(apply), torch.sum, X),
    "monitor": lambda apply: GradientMonitor(Net(apply), torch.sum).step(X),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_names_the_module(check: Callable[[Any], object]) -> None:
    said = refused(summed, check)
    assert said.startswith(f"{line_of(summed)}, of 'last' (Layer), returned for w a gradient of shape (4,)")


def test_a_reference_and_the_drop_in() -> None:
    said = refused(summed, lambda apply: check_function(lambda x, k, w: x * k * w, (X, 0.5, W), reference=apply))
    assert said.startswith(f"reference: {line_of(summed)}")
    doubles = [each.double().requires_grad_() for each in (X, W)]
    said = refused(summed, lambda apply: gradcheck(apply, (doubles[0], 0.5, doubles[1])))
    assert said.startswith(line_of(summed))


def test_an_operator_of_torch_library() -> None:
    """torch adds an argument of its own to what it makes of an operator."""

    @torch.library.custom_op("test_refused_gradients::double", mutates_args=())
    def double(x: Tensor, y: Tensor) -> Tensor:
        return 2 * x + y

    with pytest.raises(MisfitError, match="the operator test_refused_gradients::double has no backward: register one"):
        check_function(double, (X, W))
    double.register_autograd(lambda ctx, grad: grad)
    with pytest.raises(MisfitError, match=r"the backward of test_refused_gradients::double at .* returned 1 gradient,"):
        check_function(double, (X, W))


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


def multiplies(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    return grad @ grad, None, grad


def overwrites(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    return grad.expand(2, 3, 4).mul_(2)[0], None, grad


def goes_back_again(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    return torch.autograd.grad(grad.sum(), ctx.saved_tensors[0])[0], None, grad


OF_OPERATIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "shapes": (multiplies, "calls torch.Tensor.matmul, which was given tensors of shapes (3, 4) and (3, 4)"),
    "expanded": (overwrites, "calls torch.Tensor.mul_, which was given an input of shape (2, 3, 4)"),
    "graph": (goes_back_again, "asks for the gradient of something that no parameter or input has a part in"),
}


@pytest.mark.parametrize(("backward", "words"), OF_OPERATIONS.values(), ids=OF_OPERATIONS)
@pytest.mark.parametrize("check", [None, CHECKS["module"]], ids=["function", "module"])
def test_what_an_operation_of_a_backward_was_given(
    backward: Callable[..., Any], words: str, check: Callable[[Any], object] | None
) -> None:
    said = refused(backward, check)
    assert said.startswith(line_of(backward) + (", of 'last' (Layer), at " if check else ", at "))
    assert words in said


def test_an_operation_that_fails_once_comes_through() -> None:
    calls: list[int] = []

    def once(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        calls.append(1)
        return (grad @ grad if len(calls) == 1 else grad), None, grad

    with pytest.raises(RuntimeError) as caught:
        check_function(product(once).apply, (X, 0.5, W))
    assert type(caught.value) is RuntimeError


def test_a_gradient_that_a_hook_changes_is_none_of_the_backwards() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        y = product(right).apply(x, 0.5, w)
        y.grad_fn.register_hook(lambda left, _: (left[0].sum(0), *left[1:]))
        return y  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match=r"hook .* has changed the size") as caught:
        check_function(function, (X, W))
    assert type(caught.value) is RuntimeError


class Split(Function):
    """A product as torch.func wants it, by a rule that torch makes for torch.vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


def decides(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return (grad, grad) if grad.sum() > 0 else (-grad, grad)


IN_VMAP: dict[str, tuple[Callable[..., Any], str]] = {
    "shape": (
        lambda _, g: (g, g.sum()),
        "returned for w a gradient of shape () for each sample of torch.vmap",
    ),
    "one": (lambda _, g: g, "returned 1 gradient, and forward takes 2 arguments (x, w)"),
    "none": (lambda _, g: None, "returned None, which counts as one gradient,"),
    "list": (lambda _, g: [g, g], "returned a list as the gradient of x"),
    "text": (lambda _, g: (g, "g"), "returned a str as the gradient of w"),
    "complex": (lambda _, g: (g * 1j, g), "returned for x a gradient that is complex"),
    "of nothing": (lambda _: None, "has the signature (_), and torch calls it with ctx and 1 gradient"),
    "decides": (decides, "reads the numbers of a tensor, or decides by them"),
}


@pytest.mark.parametrize(("backward", "words"), IN_VMAP.values(), ids=IN_VMAP)
def test_a_backward_that_runs_under_vmap(backward: Callable[..., Any], words: str) -> None:
    function = type("Product", (Split,), {"backward": staticmethod(backward)})
    with pytest.raises(MisfitError) as caught:
        check_function(torch.vmap(function.apply), (X, W))
    assert str(caught.value).startswith(line_of(backward))
    assert words in str(caught.value)


def test_a_right_backward_under_vmap() -> None:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad * w, grad * x

    function = type("Product", (Split,), {"backward": staticmethod(backward)})
    assert check_function(torch.vmap(function.apply), (X, W)).passed
