"""Solvers of ODEs with an adjoint: the field that they call many times is named, or the adjoint, whichever is wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.culprit.test_functions import Module, accused, between, checked, sine
from torch_gradcheck.diagnosis.culprit import unwritten_memory


class Discrete(torch.autograd.Function):
    """Euler steps of a field; the backward goes back through the very same steps."""

    @staticmethod
    def forward(ctx: Any, field: nn.Module, steps: int, wrong: bool, y: Tensor, *parameters: Tensor) -> Tensor:
        ctx.field, ctx.steps, ctx.wrong = field, steps, wrong
        states = [y]
        with torch.no_grad():
            for _ in range(steps):
                states.append(states[-1] + field(states[-1]) / steps)
        ctx.save_for_backward(*states, *parameters)
        return states[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        states, parameters = ctx.saved_tensors[: ctx.steps + 1], ctx.saved_tensors[ctx.steps + 1 :]
        sums = [torch.zeros_like(each) for each in parameters]
        for y in reversed(states[:-1]):
            of_y, of_parameters = pulled_back(ctx.field, y, parameters, grad / ctx.steps)
            sums = [one + (0.8 if ctx.wrong else 1.0) * other for one, other in zip(sums, of_parameters, strict=True)]
            grad = grad + of_y
        return None, None, None, grad, *sums


class Continuous(torch.autograd.Function):
    """Steps by the midpoint rule; the backward solves the adjoint equation, backward in time, beside that for y."""

    @staticmethod
    def forward(ctx: Any, field: nn.Module, steps: int, wrong: bool, y: Tensor, *parameters: Tensor) -> Tensor:
        ctx.field, ctx.steps, ctx.wrong = field, steps, wrong
        with torch.no_grad():
            for _ in range(steps):
                y = y + field(y + field(y) / (2 * steps)) / steps
        ctx.save_for_backward(y, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        y, *parameters = ctx.saved_tensors
        h = 1.0 / ctx.steps
        sums = [torch.zeros_like(each) for each in parameters]
        for _ in range(ctx.steps):
            of_y, _ = Around(ctx.field)(y, parameters, grad)
            with torch.no_grad():
                middle = y - h / 2 * ctx.field(y)
                of_y, of_parameters = Around(ctx.field)(middle, parameters, grad + h / 2 * of_y)
                y = y - h * ctx.field(middle)
            sums = [one + h * other for one, other in zip(sums, of_parameters, strict=True)]
            grad = grad + h * (0.8 if ctx.wrong else 1.0) * of_y
        return None, None, None, grad, *sums


def pulled_back(field: nn.Module, y: Tensor, parameters: Any, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The gradients of ⟨grad, field(y)⟩ for y and the parameters."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        of_y, *of_parameters = torch.autograd.grad(field(y), (y, *parameters), grad)
    return of_y, of_parameters


def field_of(wrong: bool) -> nn.Module:
    torch.manual_seed(0)
    odd = sine(wrong, 1.5)
    return Module(lambda self, y: odd.apply(self.layer(y)), layer=nn.Linear(3, 3))


class Around(nn.Module):
    """A part of a solver that calls the field; the adjoint runs it under no_grad, and the field in it with a graph."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, y: Tensor, parameters: Any, grad: Tensor) -> Any:
        return pulled_back(self.field, y, parameters, grad)


def solved(adjoint: Any, field: nn.Module, steps: int, wrong: bool) -> nn.Module:
    """A block that solves an ODE between two layers."""

    def forward(self: Module, x: Tensor) -> Tensor:
        return adjoint.apply(self.field, steps, wrong, x, *self.field.parameters())  # type: ignore[no-any-return]

    return between(Module(forward, field=field))


SOLVERS: dict[str, tuple[Any, int]] = {"discrete adjoint": (Discrete, 8), "continuous adjoint": (Continuous, 8)}


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(("adjoint", "steps"), SOLVERS.values(), ids=SOLVERS)
def test_a_wrong_field_is_named_and_its_solver_is_not(adjoint: Any, steps: int) -> None:
    report = checked(solved(adjoint, field_of(True), steps, False))
    assert report.culprit == "1.field"
    (note,) = accused(report)
    assert "autograd.Function Odd gives a wrong gradient" in note


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(("adjoint", "steps"), SOLVERS.values(), ids=SOLVERS)
def test_a_wrong_adjoint_is_named_and_its_field_is_not(adjoint: Any, steps: int) -> None:
    report = checked(solved(adjoint, field_of(False), steps, True))
    assert report.culprit == "1"
    (note,) = accused(report)
    assert f"autograd.Function {adjoint.__name__} gives a wrong gradient" in note


def test_a_right_discrete_adjoint_is_not_accused() -> None:
    assert checked(solved(Discrete, field_of(False), 8, False)).passed


def test_a_right_adjoint_beside_a_wrong_function_is_not_named() -> None:
    """The adjoint is given the field's parameters, and the field has them as well: they are the same ones."""
    odd = sine(True)
    model = solved(Discrete, field_of(False), 4, False)
    report = checked(nn.Sequential(model[0], model[1], Module(lambda self, x: odd.apply(x)), model[2]))
    assert report.culprit == "2"
    assert len(accused(report)) == 1


@pytest.mark.parametrize("wrong", [True, False], ids=["wrong", "right"])
def test_a_field_in_a_loop(wrong: bool) -> None:
    def forward(self: Module, x: Tensor) -> Tensor:
        for _ in range(12):
            x = x + self.field(x) / 12
        return x

    report = checked(between(Module(forward, field=field_of(wrong))))
    if not wrong:
        assert report.passed
        return
    assert report.culprit == "1.field"
    (note,) = accused(report)
    assert "it is called 12 times, and one of these accounts for" in note
    assert "of what all of them add to the error of" in note


class Filled(torch.autograd.Function):
    """Writes a row of memory that nobody has written to, past autograd, as solvers do. It is right there."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, value: Tensor, row: int) -> Tensor:
        ctx.row = row
        memory.data[row] = value
        return memory

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, grad[ctx.row], None


def test_memory_that_nobody_has_written_to_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it happens to hold is another number each time."""
    odd, numbers, empty = sine(True), itertools.count(), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(next(numbers)))
    monkeypatch.setattr(unwritten_memory, "UNWRITTEN", {torch.Tensor.fill_})

    def forward(self: Module, x: Tensor) -> Tensor:
        memory = torch.empty(3, *x.shape, dtype=x.dtype)
        for row in range(3):
            memory = Filled.apply(memory, odd.apply(self.layer(x)) * (row + 1), row)
        return memory.sum(0)

    report = checked(between(Module(forward, layer=nn.Linear(3, 3))))
    assert report.culprit == "1"
    (note,) = accused(report)
    assert "autograd.Function Odd gives a wrong gradient" in note


@pytest.mark.parametrize("of", ["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])
def test_unwritten_memory_is_zeros(of: str) -> None:
    x = torch.full((2, 3), math.nan)
    make: dict[str, Callable[[], Tensor]] = {
        "empty": lambda: torch.empty(2, 3, requires_grad=True),
        "empty_like": lambda: torch.empty_like(x),
        "empty_strided": lambda: torch.empty_strided((2, 3), (3, 1)),
        "new_empty": lambda: x.new_empty((2, 3)),
        "new_empty_strided": lambda: x.new_empty_strided((2, 3), (3, 1)),
    }
    with unwritten_memory.ZeroedMemory():
        assert make[of]().tolist() == [[0.0] * 3] * 2
