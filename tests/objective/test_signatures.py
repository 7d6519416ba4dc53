"""Every way in which a function of tensors is made, and the names that its arguments have there."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck.objective.signatures import argument_names, callable_name, misfit, positional


class OldStyle(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
        return x * weight * scale


class NewStyle(Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x * weight

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...


class Variadic(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, *others: Tensor) -> Tensor:
        return first


class OwnApply(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        return x * scale

    @classmethod
    def apply(cls, value: Tensor) -> Any:
        return super().apply(value, 2.0)


class Layer(nn.Module):
    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def encode(self, tokens: Tensor) -> Tensor:
        return tokens


class Callee:
    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return query * key


def doubled(x: Tensor, by: float = 2.0) -> Tensor:
    return x * by


@functools.wraps(doubled)
def wrapper(*args: Any, **kwargs: Any) -> Tensor:
    return doubled(*args, **kwargs)


@torch.library.custom_op("torch_gradcheck_names::scaled", mutates_args=())
def scaled(x: Tensor, by: float = 2.0) -> Tensor:
    return x * by


def scripted(what: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(what)


NAMES: dict[str, tuple[Callable[..., Any], int, list[str], str]] = {
    "plain": (doubled, 2, ["x", "by"], "doubled"),
    "lambda": (lambda a, b: a * b, 2, ["a", "b"], "<lambda>"),
    "varargs": (lambda a, *rest: a, 3, ["a", "args[1]", "args[2]"], "<lambda>"),
    "old style": (OldStyle.apply, 3, ["x", "weight", "scale"], "OldStyle"),
    "setup_context": (NewStyle.apply, 2, ["x", "weight"], "NewStyle"),
    "variadic Function": (Variadic.apply, 3, ["first", "args[1]", "args[2]"], "Variadic"),
    "own apply": (OwnApply.apply, 1, ["value"], "apply"),
    "partial": (functools.partial(doubled, by=3.0), 1, ["x"], "doubled"),
    "partial of apply": (functools.partial(OldStyle.apply, torch.ones(1)), 1, ["weight"], "OldStyle"),
    "wrapper": (wrapper, 1, ["x"], "doubled"),
    "module": (Layer(), 2, ["features", "mask"], "Layer"),
    "method of a module": (Layer().encode, 1, ["tokens"], "encode"),
    "scripted module": (scripted(nn.Linear(2, 2)), 1, ["input"], "RecursiveScriptModule"),
    "object": (Callee(), 2, ["query", "key"], "Callee"),
    "custom op": (scaled, 2, ["x", "by"], "torch_gradcheck_names::scaled"),
    "packet": (torch.ops.torch_gradcheck_names.scaled, 1, ["x"], "torch_gradcheck_names::scaled"),
    "overload": (torch.ops.torch_gradcheck_names.scaled.default, 1, ["x"], "torch_gradcheck_names::scaled"),
    "of aten": (torch.ops.aten.mul.Tensor, 2, ["self", "other"], "aten::mul"),
    "several overloads": (torch.ops.aten.mul, 2, ["args[0]", "args[1]"], "aten::mul"),
    "scripted": (scripted(doubled), 2, ["x", "by"], "doubled"),
    "builtin": (torch.mul, 2, ["args[0]", "args[1]"], "mul"),
    "of torch.func": (torch.func.vmap(doubled), 1, ["x"], "doubled"),
}


@pytest.mark.parametrize(("function", "count", "names", "name"), NAMES.values(), ids=NAMES)
def test_arguments_have_the_names_that_the_user_gave_them(
    function: Callable[..., Any], count: int, names: list[str], name: str
) -> None:
    assert argument_names(function, count) == names
    assert callable_name(function) == name


MISFITS = {
    "too many for a Function": (NewStyle.apply, (1, 2, 3), r"has the signature \(x: .*: too many"),
    "too few for a Function": (OldStyle.apply, (1,), "missing a required argument: 'weight'"),
    "too few for an operator": (scaled, (), r"\(x, by=2.0\): missing a required argument: 'x'"),
    "too few for a module": (Layer(), (), "missing a required argument: 'features'"),
    "bound already": (functools.partial(OldStyle.apply, 1, 2), (3, 4), "too many positional"),
}


@pytest.mark.parametrize(("function", "args", "why"), MISFITS.values(), ids=MISFITS)
def test_why_arguments_do_not_fit(function: Callable[..., Any], args: tuple[Any, ...], why: str) -> None:
    assert re.search(why, misfit(function, args, {}))


@pytest.mark.parametrize(
    "function",
    [torch.mul, torch.ops.aten.mul, doubled, lambda *args: args],
    ids=["builtin", "operator", "function", "varargs"],
)
def test_nothing_is_said_of_arguments_that_fit_or_of_which_nobody_knows(function: Callable[..., Any]) -> None:
    assert misfit(function, (1, 2), {}) == ""


def test_apply_is_given_keywords_by_their_places() -> None:
    assert positional(OldStyle.apply, {"weight": 2, "x": 1}) == ((1, 2), {})
    assert positional(OldStyle.apply, {"weight": 2, "x": 1, "scale": 3}) == ((1, 2, 3), {})
    assert positional(OldStyle.apply, {"weight": 2}) == ((), {"weight": 2})
    assert positional(doubled, {"x": 1}) == ((), {"x": 1})


@pytest.mark.slow
def test_a_compiled_module_is_called_as_the_one_inside() -> None:
    compiled = torch.compile(Layer(), backend="eager")
    assert argument_names(compiled, 2) == ["features", "mask"]
    assert callable_name(compiled) == "Layer"
