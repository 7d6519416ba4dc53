"""What cannot be compared is refused before any verdict, in words that name the argument and say what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

from torch_gradcheck import InvalidRequestError, NonDeterministicLossError, check_closure, check_function, check_module

X = torch.randn((6, 5), generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)


class Sine(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g * ctx.saved_tensors[0].cos()


def two(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.sin(), x.cos()


REFUSED_REFERENCES: dict[str, tuple[Any, str]] = {
    "a number": (3, "reference must be callable, got int 3"),
    "a tensor": (X, "reference must be callable, got a Tensor"),
    "the class of a module": (nn.SiLU, r"reference is the class SiLU; give an instance: SiLU\("),
    "the class of a Function": (Sine, "reference is the class Sine; give Sine.apply"),
    "another signature": (lambda x, y: x, r"reference: inputs do not fit <lambda>: .*missing a required argument: 'y'"),
    "nothing": (lambda x: None, "reference: <lambda> returns no tensor"),
    "integers": (lambda x: x.long(), "reference: <lambda> returns no tensor of floating point or complex numbers"),
    "another shape": (
        lambda x: x.sum(0),
        r"reference returns output of shape \(5,\) in float64, and the candidate output of shape \(6, 5\) in bfloat16",
    ),
    "two outputs": (two, r"reference returns output\[0\] of shape .*, output\[1\] of shape"),
    "another nest": (lambda x: [x], r"reference returns output\[0\] of shape .* and the candidate output of shape"),
    "complex numbers": (lambda x: x * 1j, "in complex128, and the candidate output of shape"),
}


@pytest.mark.parametrize("case", REFUSED_REFERENCES)
def test_a_reference_that_does_not_fit_is_refused(case: str) -> None:
    reference, message = REFUSED_REFERENCES[case]
    with pytest.raises(InvalidRequestError, match=message):
        check_function(Sine.apply, (X,), reference=reference)


REFUSED_CANDIDATES: dict[str, tuple[Callable[..., Any], str]] = {
    "integers": (lambda x: x.long(), r"the candidate returns output of shape \(6, 5\) in int64: there is nothing"),
    "nothing": (lambda x: None, "the candidate returns no tensor: there is nothing"),
    "another signature": (lambda x, y: x, "^inputs do not fit <lambda>"),
}


@pytest.mark.parametrize("case", REFUSED_CANDIDATES)
def test_a_candidate_that_does_not_fit_is_refused(case: str) -> None:
    candidate, message = REFUSED_CANDIDATES[case]
    with pytest.raises(InvalidRequestError, match=message):
        check_function(candidate, (X,), reference=torch.sin)


def mean_square(y: torch.Tensor) -> torch.Tensor:
    return y.square().mean()


REFUSED_OPTIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "second order": (lambda: check_function(Sine.apply, (X,), reference=torch.sin, order=2), "leave order out"),
    "float32": (
        lambda: check_function(Sine.apply, (X,), reference=torch.sin, dtype=torch.float32),
        "leave dtype=torch.float32 out",
    ),
    "bfloat16": (
        lambda: check_function(Sine.apply, (X,), reference=torch.sin, dtype=torch.bfloat16),
        "leave dtype=torch.bfloat16 out",
    ),
    "an output selected": (
        lambda: check_module(nn.Linear(5, 2), mean_square, X, reference=nn.Linear(5, 2), exclude="output"),
        "Outputs, beside a reference, are always compared",
    ),
    "gradients": (
        lambda: check_module(nn.Linear(5, 2), mean_square, X, reference=nn.Linear(5, 2), gradients="grad"),
        "gradients= and reference= both say what is compared",
    ),
    "a function beside a module": (
        lambda: check_module(nn.Linear(5, 2), mean_square, X, reference=lambda x: x),
        r"reference must be a torch.nn.Module with the parameter names of model, got .*check_function\(",
    ),
    "a closure": (
        lambda: check_closure(nn.Linear(5, 2), X.sum, reference=nn.Linear(5, 2)),  # type: ignore[arg-type]
        r"use check_module\(model, loss_fn, batch, reference=plain_model\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED_OPTIONS)
def test_options_that_do_not_go_with_a_reference_are_refused(case: str) -> None:
    check, message = REFUSED_OPTIONS[case]
    with pytest.raises(InvalidRequestError, match=message):
        check()


def test_nothing_runs_before_a_refusal_of_options() -> None:
    def candidate(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    with pytest.raises(InvalidRequestError, match="reference must be callable"):
        check_function(candidate, (X,), reference="plain")  # type: ignore[arg-type]


def test_an_operation_without_a_float64_kernel_is_refused() -> None:
    def half_only(x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.float64:
            raise RuntimeError("\"fused_sine\" not implemented for 'Double'")
        return x.sin()

    with pytest.raises(InvalidRequestError, match=r"reference: it is computed in float64, .*fused_sine.* plain torch"):
        check_function(Sine.apply, (X,), reference=half_only)


def test_a_reference_that_is_not_deterministic_is_named() -> None:
    values = iter(range(1000))
    with pytest.raises(NonDeterministicLossError, match=r"^reference: "):
        check_function(torch.sin, (X,), reference=lambda x: x.sin() + next(values))


class OwnError(Exception):
    pass


@pytest.mark.parametrize("whose", ["candidate", "reference"])
def test_exceptions_of_either_side_come_through(whose: str) -> None:
    def raises(x: torch.Tensor) -> torch.Tensor:
        raise OwnError("of mine")

    candidate, reference = (raises, torch.sin) if whose == "candidate" else (torch.sin, raises)
    before = X.clone()
    with pytest.raises(OwnError, match=r"^of mine$"):
        check_function(candidate, (X,), reference=reference)
    assert torch.equal(before, X)


@pytest.mark.parametrize(
    "reference", [F.silu, nn.SiLU(), torch.ops.aten.silu.default], ids=["function", "module", "op"]
)
def test_a_reference_is_any_callable(reference: Any) -> None:
    assert check_function(F.silu, (X,), reference=reference).passed


def test_one_function_may_be_both_sides() -> None:
    report = check_function(Sine.apply, (X,), reference=Sine.apply)
    assert report.passed
    assert report.reference is not None
    assert report.dtype == "bfloat16"
    assert report.reference.dtype == "float64"


def test_outputs_are_compared_whatever_is_selected() -> None:
    model, plain = nn.Linear(5, 2).to(torch.bfloat16), nn.Linear(5, 2)
    report = check_module(model, mean_square, X, reference=plain, include="weight")
    assert [row.name for row in report if row.checked] == ["weight", "output"]
