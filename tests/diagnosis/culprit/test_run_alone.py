"""Functions that are harder to run alone than in J: what they close over moves with them, and refusals are told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_module

Integrand = Callable[[Tensor], Tensor]


class Evaluated(torch.autograd.Function):
    """f(x), with a gradient for x and for the first `asked` of the tensors that f depends on."""

    @staticmethod
    def forward(ctx: Any, f: Integrand, x: Tensor, *depends: Tensor) -> Tensor:
        ctx.f = f
        ctx.save_for_backward(x, *depends)
        return f(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *depends = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return None, *torch.autograd.grad(ctx.f(x), [x, *depends], grad)


class Modulated(nn.Module):
    """tanh(field(x)) · signal, where the Function is told of the signal and, if it is right, of the field."""

    def __init__(self, closure: bool, right: bool) -> None:
        super().__init__()
        self.embedding, self.field = nn.Linear(3, 3), nn.Linear(3, 3)
        self.closure, self.right = closure, right

    def at(self, signal: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.field(x)) * signal

    def forward(self, x: Tensor) -> Tensor:
        signal = self.embedding(x)
        f = (lambda u: self.at(signal, u)) if self.closure else functools.partial(self.at, signal)
        told = self.field.parameters() if self.right else ()
        return Evaluated.apply(f, x, signal, *told) + self.field(x)


def report_on(model: nn.Module) -> Report:
    return check_module(model, nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 3)))


@pytest.mark.parametrize("closure", [False, True], ids=["partial", "closure"])
def test_a_function_that_was_not_told_of_all_it_depends_on_is_named(closure: bool) -> None:
    torch.manual_seed(0)
    report = report_on(Modulated(closure, right=False))

    assert {row.name for row in report.mismatches} == {"field.weight", "field.bias"}
    assert report.culprit == ""
    assert "autograd.Function Evaluated gives a wrong gradient" in report.notes[0]


@pytest.mark.parametrize("closure", [False, True], ids=["partial", "closure"])
def test_one_that_was_told_is_right(closure: bool) -> None:
    torch.manual_seed(0)
    assert report_on(Modulated(closure, right=True)).proven


SCOPE: list[str] = []


class InScope(torch.autograd.Function):
    """2x with the gradient of 3x, and only while a scope is open."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if not SCOPE:
            raise RuntimeError("outside of its scope")
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


class Scoped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        SCOPE.append("open")
        try:
            return self.outer(InScope.apply(self.inner(x)))
        finally:
            SCOPE.clear()


def test_a_function_that_refuses_to_be_run_alone_is_not_called_innocent() -> None:
    torch.manual_seed(0)
    report = report_on(Scoped())

    assert {row.name for row in report.mismatches} == {"inner.weight", "inner.bias"}
    assert "none of them makes the error" not in report.notes[0]
    assert "InScope raises RuntimeError (outside of its scope) when it is run alone, so it may" in report.notes[0]


class NeverAsked(torch.autograd.Function):
    """scale · x, where only x is an argument, and needs no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: nn.Module) -> Tensor:
        return scale(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class OnData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(NeverAsked.apply(x, self.inner))


def test_a_function_whose_backward_never_runs() -> None:
    torch.manual_seed(0)
    report = report_on(OnData())

    assert {row.name for row in report.mismatches} == {"inner.weight", "inner.bias"}
    assert "the backward of autograd.Function NeverAsked never runs, since none of its inputs" in report.notes[0]


class Cube(torch.autograd.Function):
    """x³ with the gradient of ⅔·x³."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * grad * x**2


class Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(x)


class Steps(nn.Module):
    """Five steps of Euler, so that the one mistake is made in five calls."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Sequential(nn.Linear(3, 4), Activation(), nn.Linear(4, 3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + 0.2 * self.field(x)
        return self.head(x)


@pytest.mark.parametrize("seed", range(3))
def test_a_share_in_the_error_is_the_least_that_is_known(seed: int) -> None:
    torch.manual_seed(seed)
    report = report_on(Steps())

    assert report.culprit == "field.1"
    shares = [note for note in report.notes if "accounts for" in note]
    assert all("accounts for 100.0%" in note or "accounts for at least" in note for note in shares)
    assert not any(note.startswith("besides") for note in report.notes)
