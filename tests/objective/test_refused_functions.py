"""Functions that are called, or written, as torch does not take them: told with the method, its line and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck import check_function, check_module
from torch_gradcheck.errors import InvalidRequestError, MisfitError

X, W = torch.ones(2, 3), torch.full((2, 3), 2.0)


class Product(Function):
    """Right, and split as torch.func wants it."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad * w, grad * x


class Joined(Function):
    """Right, with a forward that takes the context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    backward = Product.backward


def other(base: type[Function], **methods: Callable[..., Any] | bool) -> type[Function]:
    """The same Function with other methods."""
    static = {name: staticmethod(each) if callable(each) else each for name, each in methods.items()}
    return type("Product", (base,), static)


def saves_a_number(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
    ctx.save_for_backward(x, 3.0)
    return x * w


def marks_another(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
    ctx.mark_dirty(x)
    return x * w


def marks_a_size(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
    ctx.mark_non_differentiable(x.size())
    return x * w


def in_vmap(function: type[Function]) -> Callable[..., Tensor]:
    return torch.vmap(function.apply)


def in_jvp(function: type[Function]) -> Callable[..., Tensor]:
    return lambda x, w: torch.func.jvp(function.apply, (x, w), (x, w))[1]


def applied(function: Any, *more: Any) -> Callable[..., Tensor]:
    return lambda *given: function.apply(*given, *more)


def instance(x: Tensor, w: Tensor) -> Tensor:
    return Joined()(x, w)  # type: ignore[no-any-return]


HERE = r" at \S*test_refused_functions\.py:\d+"

REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "too few": (
        lambda x, w: Joined.apply(x),
        rf"applies Joined to a tensor of shape \(2, 3\), and Joined.forward{HERE} has the signature \(.*: missing a "
        "required argument: 'w', behind the ctx that torch gives it",
    ),
    "too many": (
        applied(Joined, 3),
        rf"and an int, and Joined.forward{HERE} .*: too many positional arguments",
    ),
    "too few, split": (
        lambda x, w: Product.apply(x),
        rf"Product.forward{HERE} .*: missing a required argument: 'w'",
    ),
    "without context": (
        applied(other(Joined, forward=lambda x, w: x * w)),
        rf"Product.forward{HERE} has the signature \(x, w\): torch gives it ctx in front of these; have it take",
    ),
    "with context beside setup": (
        applied(other(Product, forward=lambda ctx, x, w: x * w)),
        "beside a setup_context it is given no ctx",
    ),
    "setup_context": (
        applied(other(Product, setup_context=lambda ctx, inputs: None)),
        rf"Product.setup_context{HERE} has the signature \(ctx, inputs\): torch calls it with ctx, the tuple of all",
    ),
    "saves a number": (
        applied(other(Joined, forward=saves_a_number)),
        rf"forward{HERE} saves something that is",
    ),
    "marks another": (applied(other(Joined, forward=marks_another)), rf"forward{HERE} marks as dirty what it does not"),
    "marks a size": (applied(other(Joined, forward=marks_a_size)), "marks as not differentiable what is no tensor"),
    "an instance": (
        instance,
        "calls an instance of Joined: apply the Function itself, as Joined.apply",
    ),
    "vmap of a joined one": (in_vmap(Joined), rf"Joined.forward{HERE} takes ctx, and torch.func goes through it"),
    "vmap without a rule": (in_vmap(Product), "Product has no rule for torch.vmap, .* set generate_vmap_rule = True"),
    "vmap of two rules": (
        in_vmap(other(Product, generate_vmap_rule=True, vmap=lambda info, dims, x, w: (x * w, 0))),
        "Product has two rules for torch.vmap",
    ),
    "rule without dimensions": (
        in_vmap(other(Product, vmap=lambda info, dims, x, w: x * w)),
        rf"Product.vmap{HERE} does not return what torch.vmap takes",
    ),
    "signature of a rule": (
        in_vmap(other(Product, vmap=lambda info, x, w: (x * w, 0))),
        rf"Product.vmap{HERE} has the signature \(info, x, w\): torch calls it with info, in_dims and the 2 arguments",
    ),
    "no jvp": (in_jvp(Product), "Product has no jvp, and forward-mode autograd goes through it"),
    "signature of jvp": (
        in_jvp(other(Product, jvp=lambda ctx, a: a)),
        rf"Product.jvp{HERE} has the signature \(ctx, a\): torch calls it with ctx and 2 tangents",
    ),
    "shape of jvp": (in_jvp(other(Product, jvp=lambda ctx, a, b: a.sum())), rf"Product.jvp{HERE} does not return what"),
    "count of jvp": (in_jvp(other(Product, jvp=lambda ctx, a, b: (a, b))), rf"Product.jvp{HERE} does not return what"),
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated", "ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(("function", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_it_is_told(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(MisfitError, match=words) as caught:
        check_function(function, (X, W))
    assert str(caught.value).startswith("function (")
    assert str(caught.value.__cause__).partition(". ")[0].strip(" .") in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [Joined.apply, Product.apply, in_vmap(other(Product, generate_vmap_rule=True))],
    ids=["joined", "split", "in vmap"],
)
def test_right_ones_are_right(function: Callable[..., Any]) -> None:
    assert check_function(function, (X, W)).passed


class Layer(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(W.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x, self.w)  # type: ignore[no-any-return]


def writes(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
    ctx.save_for_backward(x, w.clone())
    ctx.mark_dirty(w)
    return w.mul_(x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (other(Joined, forward=lambda x, w: x * w), "applies Product to a tensor of shape (2, 3) and a tensor"),
        (other(Joined, forward=writes), "writes to an argument that is a parameter"),
    ],
    ids=["without context", "writes to a parameter"],
)
def test_the_module_is_named(function: Any, words: str) -> None:
    with pytest.raises(MisfitError) as caught:
        check_module(nn.Sequential(nn.Linear(3, 3), Layer(function)), torch.sum, X)
    assert str(caught.value).startswith("'1' (Layer), at ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (other(Joined, forward=lambda x, w: x * w), "torch gives it ctx in front of these"),
        (other(Product, forward=lambda ctx, x, w: x * w), "beside a setup_context it is given no ctx"),
    ],
    ids=["without", "besides"],
)
def test_a_context_is_looked_for_where_inputs_do_not_fit(function: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"inputs do not fit Product.* Look at its forward: {words}"):
        check_function(function.apply, (X, W))


def test_a_setup_context_of_an_operator() -> None:
    @torch.library.custom_op("test_refused_functions::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return 2 * x

    double.register_autograd(lambda ctx, grad: 2 * grad, setup_context=lambda ctx, inputs: None)
    with pytest.raises(MisfitError, match=rf"the setup_context of its backward{HERE} has the signature \(ctx, in"):
        check_function(double, (X,))


def test_what_a_forward_raises_itself_comes_through() -> None:
    error = TypeError("save_for_backward can only save variables, but argument 0 is of type float")

    def raises(ctx: Any, x: Tensor, w: Tensor) -> None:
        raise error

    with pytest.raises(TypeError) as caught:
        check_function(other(Joined, forward=raises).apply, (X, W))
    assert caught.value is error
