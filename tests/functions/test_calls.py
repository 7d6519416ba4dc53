"""How a function is called: whatever it is, with arguments of every kind, right ones beside wrong twins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck import Report, check_function
from torch_gradcheck.errors import InvalidRequestError

RNG = torch.Generator().manual_seed(17)
X, Y = torch.randn(3, 4, generator=RNG), torch.randn(3, 4, generator=RNG)


def statuses(report: Report) -> dict[str, str]:
    return {row.name: row.status.value for row in report}


class Product(Function):
    """x · y with gradients off by `factor` for y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        return x * y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return gradient * y, ctx.factor * gradient * x, None


class SetUp(Function):
    """The same in the other style."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        return x * y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, ctx.factor = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return gradient * y, ctx.factor * gradient * x, None


class Gate(nn.Module):
    """A module with one parameter, of the name of its argument."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.5, -0.7, 1.1, 0.3]))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.x.expand_as(x), self.factor)  # type: ignore[no-any-return]

    def encode(self, tokens: Tensor) -> Tensor:
        return self(tokens).tanh()


@torch.library.custom_op("torch_gradcheck_calls::product", mutates_args=())
def product(x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
    return x * y


product.register_autograd(
    lambda ctx, gradient: (gradient * ctx.y, ctx.factor * gradient * ctx.x, None),
    setup_context=lambda ctx, inputs, output: vars_of(ctx, *inputs),
)


def vars_of(ctx: Any, x: Tensor, y: Tensor, factor: float) -> None:
    ctx.x, ctx.y, ctx.factor = x, y, factor


def doubling(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that doubles what a function returns."""

    @functools.wraps(function)
    def doubled(*args: Any, **kwargs: Any) -> Any:
        return 2 * function(*args, **kwargs)

    return doubled


KINDS: dict[str, tuple[Callable[[float], Callable[..., Any]], list[str]]] = {
    "Function": (lambda factor: functools.partial(_with_factor, Product.apply, factor), ["x", "y"]),
    "lambda": (lambda factor: lambda a, b: Product.apply(a, b, factor), ["a", "b"]),
    "setup_context": (lambda factor: lambda a, b: SetUp.apply(a, b, factor), ["a", "b"]),
    "operator": (lambda factor: functools.partial(product, factor=factor), ["x", "y"]),
    "decorated": (lambda factor: doubling(lambda a, b: Product.apply(a, b, factor)), ["a", "b"]),
    "of torch.func": (lambda factor: torch.func.vmap(lambda a, b: SetUp.apply(a, b, factor)), ["a", "b"]),
}


def _with_factor(apply: Callable[..., Any], factor: float, x: Tensor, y: Tensor) -> Any:
    return apply(x, y, factor)


@pytest.mark.parametrize("factor", [1.0, 1.01], ids=["right", "wrong"])
@pytest.mark.parametrize(("kind", "names"), [*KINDS.values()][:-1], ids=[*KINDS][:-1])
def test_every_kind_of_function(kind: Callable[[float], Callable[..., Any]], names: list[str], factor: float) -> None:
    report = check_function(kind(factor), (X, Y))
    wrong = "match" if factor == 1 else "mismatch"
    assert statuses(report) == {names[0]: "match", names[1]: wrong}


@pytest.mark.parametrize(
    "function", [Product.apply, SetUp.apply, product], ids=["old style", "setup_context", "operator"]
)
@pytest.mark.parametrize("factor", [1.0, 1.01], ids=["right", "wrong"])
def test_arguments_that_are_no_tensors(function: Callable[..., Any], factor: float) -> None:
    wrong = "match" if factor == 1 else "mismatch"
    for inputs in ((X, Y, factor), {"y": Y, "x": X, "factor": factor}):
        assert {row.name: row.status.value for row in check_function(function, inputs)} == {"x": "match", "y": wrong}


@pytest.mark.parametrize(("factor", "status"), [(1.0, "match"), (1.01, "mismatch")], ids=["right", "wrong"])
@pytest.mark.parametrize("method", ["forward", "encode"])
def test_parameters_of_a_module_are_rows_too(factor: float, status: str, method: str) -> None:
    """A bound method is the module with another forward; its argument gives way where its name is taken."""
    gate = Gate(factor)
    function, argument = (gate, "x (argument)") if method == "forward" else (gate.encode, "tokens")
    assert statuses(check_function(function, (X,))) == {"x": status, argument: "match"}


def test_the_mode_of_a_module_stays_as_it_is() -> None:
    layer = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    for training in (True, False):
        report = check_function(layer.train(training), (X,))
        assert report.mode == "keep"
        assert report.passed
        assert layer.training is training
        assert not [note for note in report.notes if "eval mode" in note]


def test_tensors_in_nests_are_named_by_their_places() -> None:
    report = check_function(lambda pair, table: pair[0] * pair[1] + table["a"]["b"], ((X, Y), {"a": {"b": X.clone()}}))
    assert statuses(report) == {"pair[0]": "match", "pair[1]": "match", "table['a']['b']": "match"}


def test_arguments_without_a_name_are_counted() -> None:
    assert list(statuses(check_function(lambda first, *rest: first * rest[0] * rest[1], (X, Y, Y + 1)))) == [
        "first", "args[1]", "args[2]"
    ]  # fmt: skip


def test_one_tensor_given_twice_is_one_row() -> None:
    report = check_function(torch.mul, (X, X))
    assert [(row.name, row.aliases) for row in report] == [("args[0]", ("args[1]",))]
    assert report.passed


def test_two_views_of_one_memory_are_two_rows() -> None:
    assert statuses(check_function(lambda a, b: a * b, (X[:, :2], X[:, 1:3]))) == {"a": "match", "b": "match"}


def test_on_trial_are_the_tensors_that_require_grad_or_all() -> None:
    asked = X.clone().requires_grad_()
    assert statuses(check_function(lambda a, b: a * b, (asked, Y))) == {"a": "match"}
    assert statuses(check_function(lambda a, b: a * b, (X, Y))) == {"a": "match", "b": "match"}
    assert asked.grad is None


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x: x.sin(), (torch.tensor(0.3),)),
        (lambda x: x * x.conj(), (torch.randn(3, generator=RNG, dtype=torch.complex64),)),
        (lambda x: (x * x.conj()).real, (torch.randn(3, generator=RNG, dtype=torch.complex64).conj(),)),
        (lambda x: x**2, (torch.randn(3, generator=RNG, dtype=torch.complex64).conj().imag,)),
        (lambda x, index: x[index], (X, torch.tensor([2, 0, 2]))),
        (lambda x: x.exp(), (X.bfloat16(),)),
        (lambda x: x.half().exp(), (X,)),
        (lambda x: x.square(), (X[:, :1].expand(3, 4),)),
        (lambda x: x.square(), (nn.Parameter(X),)),
        (lambda x: x.square(), (X.clone().requires_grad_() * 2,)),
        (lambda x, empty: x.sin().sum() + empty.sum(), (X, torch.empty(0, 4))),
        (lambda x, nothing, word: x.sin() if word == "sin" else nothing, (X, None, "sin")),
    ],
    ids=["0-dim", "complex", "conjugated", "negated", "integers", "bfloat16", "half inside", "expanded", "parameter",
         "no leaf", "empty", "None and a string"],
)  # fmt: skip
def test_arguments_of_every_kind(function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    report = check_function(function, inputs)
    assert report.passed
    assert {row.status.value for row in report} <= {"match", "flat"}


def test_entries_that_no_step_moves_are_left_out() -> None:
    """Masks are filled with −∞."""
    mask = torch.zeros(3, 4)
    mask[0, 1] = -torch.inf
    report = check_function(lambda x, mask: (x + mask).softmax(-1), (X, mask))
    assert statuses(report) == {"x": "match", "mask": "match"}
    assert report["mask"].checked == 11
    assert [note for note in report.notes if "were left out: 1 of mask" in note]


class Squaring(Function):
    """Writes x² to its argument, which it marks; the gradient is off by a factor."""

    factor = 1.0

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone())
        ctx.mark_dirty(x)
        return x.mul_(x)

    @classmethod
    def backward(cls, ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cls.factor * 2 * x * gradient


class SquaringWrong(Squaring):
    factor = 1.01


class Unmarked(Function):
    """Overwrites its argument unseen, with a right gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone())
        result = x * x
        x.data.zero_()
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


IN_PLACE: dict[str, tuple[Callable[..., Any], str]] = {
    "marked": (Squaring.apply, "match"),
    "marked, wrong": (SquaringWrong.apply, "mismatch"),
    "plain": (lambda x: x.mul_(3), "match"),
    "a view": (lambda x: x[0].exp_(), "match"),
    "past autograd": (Unmarked.apply, "match"),
    "under no_grad": (lambda x: _halved_unseen(x) + 2 * x, "mismatch"),
}


def _halved_unseen(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.mul_(0.5).clone()


@pytest.mark.parametrize(("function", "status"), IN_PLACE.values(), ids=IN_PLACE)
def test_functions_that_write_to_their_arguments(function: Callable[..., Any], status: str) -> None:
    x = X.clone()
    assert statuses(check_function(function, (x,))) == {"x": status}
    assert torch.equal(x, X)
    assert x._version == 0


def test_other_functions_see_leaves() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(x.is_leaf and x.requires_grad)
        return x.sin()

    report = check_function(function, (X,))
    assert report.passed
    assert seen[0]


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a tensor": (Product.apply, X, r"got a Tensor: for a single argument x write \(x,\)"),
    "nothing": (Product.apply, None, "got a NoneType"),
    "a string": (Product.apply, "x", "got a str"),
    "keys": (Product.apply, {1: X}, r"keys that are no names of arguments: \[1\]"),
    "no tensors": (lambda a: a, (3, [1.5]), r"no tensor of floating point .* \(found int, list\)"),
    "integers": (lambda a: a, (torch.arange(3),), r"\(found int64 tensor\)"),
    "arrays": (lambda a: a, (X.numpy(),), "ndarray; torch.from_numpy makes tensors"),
    "too many": (Product.apply, (X, Y, 1.0, 2.0), r"inputs do not fit Product: .* 4 positional arguments, .* too many"),
    "too few": (product, (X,), r"do not fit torch_gradcheck_calls::product: .* missing a required argument: 'y'"),
    "no such name": (Product.apply, {"x": X, "z": Y}, "do not fit Product"),
    "builtin": (torch.mul, (X,), "do not fit mul: .* torch says: mul"),
    "a Function": (Product, (X, Y), "function is the class Product; give Product.apply"),
    "a class of modules": (nn.Linear, (X,), r"function is the class Linear; give an instance: Linear\(...\)"),
    "no function": (3, (X,), "function must be callable, got int 3"),
    "meta": (torch.sin, (X.to("meta"),), "cannot be perturbed, on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "inputs", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_called_is_refused(function: Any, inputs: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        check_function(function, inputs)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_an_instance_of_a_function_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"function is an instance of Product; give Product.apply"):
        check_function(Product(), (X, Y))


def test_an_exception_of_the_functions_own_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        check_function(lambda x: x * (1 / 0), (X,))
    with pytest.raises(TypeError, match="unsupported operand"):
        check_function(lambda x: x + object(), (X,))


def test_tensors_that_are_captured_are_named() -> None:
    weight, layer = X.clone().requires_grad_(), nn.Linear(4, 2)
    report = check_function(lambda x: layer(x * weight), (Y,))
    assert statuses(report) == {"x": "match"}
    assert any(
        "not on trial, though a gradient is required: weight, the parameters of Linear" in n for n in report.notes
    )
    assert not any("not on trial" in note for note in check_function(layer, (Y,)).notes)


def test_random_numbers_are_the_same_in_every_evaluation() -> None:
    before = torch.random.get_rng_state()
    assert check_function(lambda x: nn.functional.dropout(x, 0.5), (X,)).passed
    assert torch.equal(torch.random.get_rng_state(), before)


class WritesBack(Function):
    """Overwrites the argument that it has saved, past autograd, once its right gradient is computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result = 2 * x * gradient
        x.data.zero_()
        return result


def test_a_backward_that_writes_to_an_argument_does_not_move_theta() -> None:
    report = check_function(WritesBack.apply, (X,))
    assert statuses(report) == {"x": "match"}
    assert "inputs_kept" in {entry.name for entry in report.contract if entry.status.value == "failed"}


def test_a_module_of_length_0_is_a_module() -> None:
    assert check_function(nn.Sequential(), (X,)).passed
