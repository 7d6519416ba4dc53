"""The application of a Function that torch has refused is read off the frames of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_gradcheck.torch_internals import function_calls
from torch_gradcheck.torch_internals.function_calls import application_of, is_apply, unbound

X = torch.ones(2, requires_grad=True)


class Scaled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: float) -> Tensor:
        return x * k


class Split(Function):
    @staticmethod
    def forward(x: Tensor, k: float) -> Tensor:
        return x * k

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...


def error_of(run: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  any
        run()
    error: Exception = caught.value
    return error


@pytest.mark.skipif(function_calls.APPLY is None, reason="this torch applies Functions in C++, which leaves no frame")
@pytest.mark.parametrize(
    ("run", "function", "misfits"),
    [
        (lambda: Scaled.apply(X), Scaled, "missing a required argument: 'k'"),
        (lambda: Split.apply(X), Split, "missing a required argument: 'k'"),
        (lambda: torch.vmap(Scaled.apply, in_dims=(0, None))(X, 2.0), Scaled, ""),
        (lambda: torch.vmap(Split.apply, in_dims=(0, None))(X, 2.0), Split, ""),
    ],
    ids=["joined", "split", "joined in vmap", "split in vmap"],
)
def test_the_function_and_what_it_was_given(run: Any, function: Any, misfits: str) -> None:
    found = application_of(error_of(run))
    assert found is not None
    assert found.function is function
    assert found.args[0].shape[-1:] in ((2,), ())
    assert (found.misfits(), found.has_context_apart) == (misfits, function is Split)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_an_instance() -> None:
    found = application_of(error_of(lambda: Scaled()(X)))
    assert found is not None
    assert (found.function, found.is_an_instance) == (Scaled, True)


def test_code_of_the_users_since_has_raised_itself() -> None:
    class Raises(Scaled):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            raise TypeError("mine")

    assert application_of(error_of(lambda: Raises.apply(X))) is None


def test_what_has_no_signature_can_be_called_for_all_one_knows() -> None:
    assert unbound(torch.add, 1, 2, 3, 4) == ""


def test_an_application_in_cpp_leaves_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torch 2.15: the error is then told without the call."""
    monkeypatch.setattr(function_calls, "APPLY", None)
    assert application_of(error_of(lambda: Scaled.apply(X))) is None


class Overridden(Scaled):
    @classmethod
    def apply(cls, *args: Any) -> Any:
        return args


def test_torchs_own_apply_is_told_from_one_that_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch 2.15 it is a builtin method, like that of the class that torch's C++ defines here."""
    assert [is_apply(each) for each in (Scaled.apply, Overridden.apply, torch.sin)] == [True, False, False]
    monkeypatch.setattr(function_calls, "APPLY", None)
    builtin = super(torch.autograd.function._SingleLevelFunction, Scaled).apply  # type: ignore[misc]
    assert [is_apply(each) for each in (builtin, Overridden.apply, torch.sin)] == [True, False, False]
