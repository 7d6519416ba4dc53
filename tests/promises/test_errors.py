"""Promise: what cannot be checked says what, where, the figures and what to do; the user's own exceptions pass."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import (
    GradcheckError,
    GradientMismatchError,
    InvalidRequestError,
    NonDeterministicLossError,
    NonFiniteLossError,
    NonScalarLossError,
    check_closure,
    check_module,
)


def net() -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(3, 4))
    model.add_module("decoder", nn.Linear(4, 2))
    return model


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}


def refused(model: Any, *words: str, loss_fn: Any = torch.sum, batch: Any = None, **options: Any) -> None:
    """The check is refused, and the message has all the words."""
    batch = torch.randn(2, 3) if batch is None else batch
    with pytest.raises(InvalidRequestError) as caught:
        check_module(model, loss_fn, batch, **options)
    assert_says(caught.value, *words)


def assert_says(error: BaseException, *words: str) -> None:
    missing = [word for word in words if word.lower() not in str(error).lower()]
    assert not missing, f"{missing} not in: {error}"


def test_the_errors_are_one_family() -> None:
    assert issubclass(InvalidRequestError, TypeError)
    assert issubclass(InvalidRequestError, ValueError)
    assert issubclass(GradientMismatchError, AssertionError)
    kinds = (
        InvalidRequestError,
        GradientMismatchError,
        NonScalarLossError,
        NonFiniteLossError,
        NonDeterministicLossError,
    )
    assert all(issubclass(kind, GradcheckError) for kind in kinds)


# Arguments --------------------------------------------------------------------------------------------------------

ARGUMENTS: list[tuple[str, Any, tuple[str, ...]]] = [
    ("method", "fast", ("method", "'exact'", "'fast'")),
    ("method", 3, ("method", "int 3")),
    ("eps", -1e-7, ("eps", "positive", "-1e-07")),
    ("eps", 0, ("eps", "positive", "0")),
    ("eps", float("nan"), ("eps", "nan")),
    ("eps", "small", ("eps", "'small'")),
    ("tolerance", 0.0, ("tolerance", "positive", "0.0")),
    ("tolerance", "1e-5", ("tolerance", "str")),
    ("tolerance", 1.0, ("tolerance", "below 1")),
    ("mode", "test", ("mode", "'eval'", "'train'", "'keep'", "'test'")),
    ("mode", True, ("mode", "True")),
    ("dtype", torch.float16, ("dtype", "float64", "float32", "float16")),
    ("dtype", "float64", ("dtype", "torch.float64", "'float64'")),
    ("seed", 1.5, ("seed", "integer", "1.5")),
    ("seed", -1, ("seed", "-1")),
    ("progress", "yes", ("progress", "True", "'yes'")),
    ("include", 3, ("include", "glob", "int 3")),
    ("include", [], ("include", "empty")),
    ("include", ["encoder.*", 3], ("include", "glob")),
    ("exclude", {"a": 1}, ("exclude", "glob", "dict")),
    ("gradients", "gradient", ("gradients", "mapping", "'gradient'")),
    ("gradients", [1, 2], ("gradients", "mapping", "list")),
]


@pytest.mark.parametrize(("option", "value", "words"), ARGUMENTS, ids=lambda value: str(value)[:30])
def test_an_option_of_the_wrong_kind(option: str, value: Any, words: tuple[str, ...]) -> None:
    refused(net(), *words, **{option: value})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear, ("model", "class Linear", "instance")),
        (lambda x: x, ("model", "nn.Module", "function")),
        (None, ("model", "nn.Module", "None")),
    ],
    ids=["class", "function", "none"],
)
def test_a_model_that_is_none(model: Any, words: tuple[str, ...]) -> None:
    refused(model, *words)


def test_a_loss_that_cannot_be_called() -> None:
    refused(net(), "loss_fn", "callable", "Tensor", loss_fn=torch.tensor(1.0))
    with pytest.raises(InvalidRequestError, match=r"closure must be callable"):
        check_closure(net(), 3.0)


@pytest.mark.parametrize("batch", [(), []], ids=["tuple", "list"])
def test_an_empty_batch(batch: Any) -> None:
    refused(net(), "batch is empty", "(inputs, *targets)", batch=batch)


# Parameters and patterns ------------------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing_names_close_ones() -> None:
    refused(net(), "include='encodr.weight'", "matches no parameter", "encoder.weight", include="encodr.weight")
    refused(net(), "exclude='decodr.*'", "matches no parameter", "decoder.", exclude=["encoder.*", "decodr.*"])


def test_patterns_that_leave_nothing() -> None:
    refused(net(), "include", "exclude", "leave none of the 4 parameters", include="encoder.*", exclude="*")


def test_a_model_without_parameters() -> None:
    refused(nn.Sequential(nn.Tanh()), "Sequential", "no parameters")


def test_nothing_that_requires_a_gradient() -> None:
    refused(net().requires_grad_(False), "none of the 4", "requires a gradient", "encoder.weight", "requires_grad_()")
    half = net()
    half.encoder.requires_grad_(False)
    refused(half, "none of the 2", "encoder.bias", "requires_grad_()", include="encoder.*")


def test_parameters_without_numbers() -> None:
    refused(net().to("meta"), "'encoder.weight'", "meta device", "to_empty")
    refused(nn.Sequential(nn.LazyLinear(2)), "'0.weight'", "not initialised", "call the model once")


def test_buffers_and_batches_without_numbers() -> None:
    model = net()
    model.encoder.register_buffer("scale", torch.ones(2, device="meta"))
    refused(model, "encoder.scale", "meta device")
    refused(net(), "batch", "meta device", batch=torch.ones(2, 3, device="meta"))


# Gradients derived by hand ----------------------------------------------------------------------------------------


def test_a_gradient_that_is_missing() -> None:
    gradients = gradients_of(net())
    del gradients["decoder.bias"]
    refused(net(), "'decoder.bias'", "(2,)", "exclude", gradients=gradients)


def test_a_gradient_of_an_unknown_name() -> None:
    gradients = {**gradients_of(net()), "decoder.baias": torch.zeros(2)}
    refused(net(), "'decoder.baias'", "decoder.bias", gradients=gradients)


def test_a_gradient_of_the_wrong_shape() -> None:
    gradients = {**gradients_of(net()), "decoder.weight": torch.zeros(4, 2)}
    refused(net(), "'decoder.weight'", "(4, 2)", "(2, 4)", gradients=gradients)


def test_a_gradient_that_is_no_array_of_numbers() -> None:
    refused(net(), "'decoder.bias'", gradients={**gradients_of(net()), "decoder.bias": "steep"})
    refused(net(), "'decoder.bias'", "complex", gradients={**gradients_of(net()), "decoder.bias": 1j * np.ones(2)})


def test_a_tied_gradient_given_twice() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    gradients = {name: torch.zeros_like(p) for name, p in model.named_parameters(remove_duplicate=False)}
    refused(model, "'0.weight'", "'1.weight'", "twice", batch=torch.randn(3, 2), gradients=gradients)


# Losses that are not one real number ------------------------------------------------------------------------------


def assert_not_scalar(loss_fn: Callable[[Tensor], Any], *words: str) -> None:
    with pytest.raises(NonScalarLossError) as caught:
        check_module(net(), loss_fn, torch.randn(5, 3))
    assert_says(caught.value, "loss", *words)


def test_a_loss_that_is_not_one_real_number() -> None:
    assert_not_scalar(lambda y: y, "(5, 2)", "10", ".mean()")
    assert_not_scalar(lambda y: y[:0].sum(1), "(0,)", "0 entries")
    assert_not_scalar(lambda y: torch.complex(y, y).sum(), "complex", ".real")
    assert_not_scalar(lambda y: y.argmax(), "int64", "no gradient")
    assert_not_scalar(lambda y: (y > 0).all(), "bool")
    assert_not_scalar(lambda y: y.detach().sum().item(), "float", "not a tensor")
    assert_not_scalar(lambda y: None, "NoneType", "not a tensor")
    assert_not_scalar(lambda y: (y.sum(), y), "tuple", "not a tensor")


def test_a_closure_without_a_loss() -> None:
    with pytest.raises(NonScalarLossError, match="NoneType"):
        check_closure(net(), lambda: None)


def test_a_loss_of_one_entry_is_a_scalar() -> None:
    assert check_module(net(), lambda y: y.sum().reshape(1, 1), torch.randn(2, 3)).passed


# Losses that are not finite ---------------------------------------------------------------------------------------


class Inner(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def nested(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """block.inner applies the function; what comes after it is not to blame."""
    block = nn.Sequential()
    block.add_module("inner", Inner(function))
    model = nn.Sequential(nn.Linear(3, 2))
    model.add_module("block", block)
    model.add_module("last", nn.Linear(2, 1))
    return model


def zero_over_zero(y: Tensor) -> Tensor:
    z = y.clone()
    z[1, 0] = 0.0
    return y / z * (z / z)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (zero_over_zero, ("nan", "1 of 6 entries", "1 nan", "(1, 0)")),
        (lambda y: y / torch.zeros_like(y).abs(), ("6 of 6 entries", "6 infinite", "(0, 0)")),
    ],
    ids=["nan", "infinite"],
)
def test_the_first_module_that_is_not_finite_is_named(
    function: Callable[[Tensor], Tensor], words: tuple[str, ...]
) -> None:
    torch.manual_seed(5)
    with pytest.raises(NonFiniteLossError) as caught:
        check_module(nested(function), torch.sum, torch.randn(3, 3))
    assert caught.value.module == "block.inner"
    assert_says(caught.value, "'block.inner'", "Inner", *words)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_by_itself(value: float) -> None:
    with pytest.raises(NonFiniteLossError) as caught:
        check_module(net(), lambda y: y.sum() * 0 + value, torch.randn(2, 3))
    assert caught.value.module is None
    assert_says(caught.value, str(value), "loss function", "every module's output is finite")


def test_a_parameter_that_is_not_finite() -> None:
    model = net()
    with torch.no_grad():
        model.decoder.weight[1, 2] = float("nan")
    with pytest.raises(NonFiniteLossError) as caught:
        check_module(model, torch.sum, torch.randn(2, 3))
    assert_says(caught.value, "'decoder.weight'", "1 of 8", "(1, 2)")


def test_a_batch_that_is_not_finite() -> None:
    batch = torch.randn(2, 3)
    batch[0, 1] = float("nan")
    with pytest.raises(NonFiniteLossError) as caught:
        check_module(net(), torch.sum, batch)
    assert_says(caught.value, "nan", "'encoder'")


# Losses that change from call to call -----------------------------------------------------------------------------


def test_the_first_module_that_changes_is_named() -> None:
    model = nested(lambda y: y * (1 + time.perf_counter_ns() % 1_000_003))
    with pytest.raises(NonDeterministicLossError) as caught:
        check_module(model, torch.sum, torch.randn(3, 3))
    assert caught.value.module == "block.inner"
    assert_says(caught.value, "'block.inner'", "Inner", "difference", "two equal calls")
    figures = re.findall(r"J\(θ\) = (\S+) and (\S+)", str(caught.value))
    assert figures
    assert figures[0][0] != figures[0][1]


def test_a_loss_that_changes_by_itself() -> None:
    with pytest.raises(NonDeterministicLossError) as caught:
        check_module(net(), lambda y: y.sum() * time.perf_counter(), torch.randn(2, 3))
    assert caught.value.module is None
    assert_says(caught.value, "loss function", "no module")


def test_entropy_of_the_system_in_a_module() -> None:
    model = nested(lambda y: y + torch.rand(1, generator=_unseeded()).to(y))
    with pytest.raises(NonDeterministicLossError) as caught:
        check_module(model, torch.sum, torch.randn(3, 3))
    assert caught.value.module == "block.inner"


def _unseeded() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def test_random_numbers_of_seeded_generators_are_no_error() -> None:
    model = nested(lambda y: nn.functional.dropout(y, 0.5) + torch.rand_like(y) * float(np.random.rand()))
    assert check_module(model, torch.sum, torch.randn(3, 3)).passed


def test_a_loss_that_starts_to_change_later_is_still_noticed() -> None:
    """Equal for the first calls, as caches and warm-ups are, then different: no verdict may come of it."""
    calls: list[int] = []

    def drifting(y: Tensor) -> Tensor:
        calls.append(1)
        return y.sum() * (1.0 if len(calls) < 12 else 1.0 + len(calls))

    with pytest.raises(NonDeterministicLossError):
        check_module(net(), _Opaque(drifting), torch.randn(2, 3))


class _Opaque:
    """Hides what a function holds, so that it cannot be put back."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def __call__(self, y: Tensor) -> Tensor:
        return self._function(y)


# The mismatch -----------------------------------------------------------------------------------------------------


def test_a_mismatch_raises_the_table() -> None:
    model = net()
    model.encoder.weight.register_hook(lambda g: 2 * g)
    report = check_module(model, torch.sum, torch.randn(2, 3))
    with pytest.raises(GradientMismatchError) as caught:
        report.raise_if_failed()
    assert str(caught.value) == str(report)
    assert_says(caught.value, "encoder.weight", "mismatch", "decoder.bias", "match")
    check_module(net(), torch.sum, torch.randn(2, 3)).raise_if_failed()


def test_an_unknown_name_in_the_report() -> None:
    report = check_module(net(), torch.sum, torch.randn(2, 3))
    with pytest.raises(KeyError) as caught:
        report["encoder.wieght"]
    assert_says(caught.value, "encoder.wieght", "encoder.weight")


# The user's own exceptions ----------------------------------------------------------------------------------------

OWN = [
    RuntimeError("sizes do not fit"),
    TypeError("forward() got too much"),
    ValueError("no such label"),
    KeyError("missing"),
    AssertionError("shapes differ"),
    StopIteration("no more data"),
    GeneratorExit("closed"),
    NotImplementedError("no backward"),
    RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn"),
    ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
    NonScalarLossError("raised by the user"),
    MemoryError("out of memory"),
]


def raised_by(place: str, error: BaseException) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model and a loss, one of which raises."""
    model = net()

    def refuse(*arguments: Any) -> Any:
        raise error

    if place == "forward":
        model.decoder.forward = refuse  # type: ignore[method-assign]
    elif place == "forward pre-hook":
        model.decoder.register_forward_pre_hook(refuse)
    elif place == "forward hook":
        model.decoder.register_forward_hook(refuse)
    elif place == "tensor hook":
        model.decoder.weight.register_hook(refuse)
    elif place == "backward hook":
        model.decoder.register_full_backward_hook(refuse)
    return model, refuse if place == "loss" else torch.sum


PLACES = ["forward", "forward pre-hook", "forward hook", "loss", "tensor hook", "backward hook"]


@pytest.mark.slow_but_for(20)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", OWN, ids=lambda error: f"{type(error).__name__}-{str(error)[:9]}")
def test_an_exception_of_the_users_comes_through_as_it_is(error: BaseException, place: str) -> None:
    error.__context__, error.__traceback__ = None, None
    model, loss_fn = raised_by(place, error)
    with pytest.raises(type(error)) as caught:
        check_module(model, loss_fn, torch.randn(2, 3))
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("error", OWN[:5], ids=lambda error: type(error).__name__)
def test_an_exception_in_a_closure_comes_through_as_it_is(error: Exception) -> None:
    def closure() -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        check_closure(net(), closure)
    assert caught.value is error


def two(a: Tensor, b: Tensor) -> Tensor:
    return a.sum() + b.sum()


MISFITS: dict[str, tuple[Any, Any, str]] = {
    "keyword": (torch.sum, {"x": torch.randn(2, 3)}, r"batch does not fit model: .* the keywords \['x'\]"),
    "no keyword": (torch.sum, {}, "batch does not fit model: it is called with 0 positional arguments"),
    "no name": (torch.sum, {1: torch.randn(2, 3)}, r"batch has keys that are no names of arguments: \[1\]"),
    "inputs": (torch.sum, ((torch.randn(2, 3), 1),), "batch does not fit model: it is called with 2 positional"),
    "no target": (two, torch.randn(2, 3), "batch does not fit loss_fn: it is called with 1 .* 'b'"),
    "targets": (two, (torch.randn(2, 3), 1, 2), "batch does not fit loss_fn: it is called with 3 .* too many"),
}


@pytest.mark.parametrize(("loss_fn", "batch", "words"), MISFITS.values(), ids=MISFITS)
def test_a_batch_that_does_not_fit(loss_fn: Any, batch: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        check_module(net(), loss_fn, batch)


def test_shapes_that_do_not_fit_are_what_the_model_says() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        check_module(nn.Linear(3, 2), torch.sum, torch.randn(2, 4))


def test_a_type_error_inside_of_a_model_is_not_the_batchs() -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return two(super().forward(x))  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'") as caught:
        check_module(Model(3, 2), torch.sum, torch.randn(2, 3))
    assert not isinstance(caught.value, InvalidRequestError)


def test_a_closure_with_arguments() -> None:
    with pytest.raises(InvalidRequestError, match=r"closure must take no arguments, .* signature \(batch\)"):
        check_closure(net(), lambda batch: batch.sum())
