"""What has nothing to do with a mistake is not blamed, though it looks like what often has; its guilty twin is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.planted.places import UsedTwice, network
from torch_gradcheck import Report, check_closure, check_module

X, T = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(1, -1, 15).view(5, 3).sin()


def told(report: Report, words: str) -> list[str]:
    assert not report.passed
    return [note for note in report.notes if words in note]


# Layers that are used several times ------------------------------------------------------------------------------

TOGETHER = "its backwards give together what they do not give alone"


class Tied(nn.Module):
    """A layer called twice, whose weight is used besides, behind a detach."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(torch.tanh(self.layer(x))))
        return self.head(y + nn.functional.linear(y.detach(), self.layer.weight))


def tied() -> Report:
    return check_module(Tied(), squared_error, (X, T))


def penalised() -> Report:
    layer = nn.Linear(3, 3)

    def closure() -> Tensor:
        y = torch.tanh(layer(X))
        return (torch.tanh(layer(y)) * y.detach() - T).square().sum() + layer.weight.square().sum()

    return check_closure(nn.Sequential(layer), closure)


def differentiated() -> Report:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))

    def closure() -> Tensor:
        x = X.clone().requires_grad_()
        y = model(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return (slope * y.detach()).square().mean() + model(T).square().mean()

    return check_closure(model, closure)


@pytest.mark.parametrize("check", [tied, penalised, differentiated])
def test_a_layer_whose_parameter_is_used_besides_is_not_blamed(check: Callable[[], Report]) -> None:
    torch.manual_seed(0)
    report = check()
    assert told(report, TOGETHER) == []
    assert report.culprit in ("", "loss_fn")


def test_a_layer_whose_calls_disturb_each_other_is() -> None:
    problem = network(UsedTwice)(True)
    report = check_module(problem.model, problem.loss_fn, problem.batch)
    assert len(told(report, TOGETHER)) == 1
    assert report["layer.weight"].diagnosis is not None
    assert report["layer.weight"].diagnosis.kind == "stale"


class Cell(nn.Module):
    """A layer with one weight; wrong: it changes the gradient in a way that has no name."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong, self.weight = wrong, nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x * self.weight)
        if self.wrong and y.requires_grad:
            y.register_hook(lambda grad: grad + grad.roll(1, 0).square())
        return y


class SameInput(nn.Module):
    """A right layer, called twice for the same input, before one of its class that is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.wrong = Cell(False), Cell(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.wrong(self.right(x) + self.right(x).sin())


def test_a_layer_called_twice_for_the_same_input_is_not_called_stale() -> None:
    torch.manual_seed(0)
    report = check_module(SameInput(), squared_error, (X, T))
    assert report.culprit == "wrong"
    assert {str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis} == {"unknown"}


# Backwards that write to the gradient they are given -------------------------------------------------------------


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.mul_(ctx.saved_tensors[0].cos())


class WithInPlace(nn.Module):
    """A Function writes to a gradient that a second branch is given, too, or nobody; then another path is lost."""

    def __init__(self, spoils: bool) -> None:
        super().__init__()
        self.spoils, self.front, self.back = spoils, nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.front(x)
        if self.spoils:
            return self.back(h + InPlace.apply(h))
        y = InPlace.apply(h)
        return self.back(y * y.detach())


@pytest.mark.parametrize("spoils", [False, True], ids=["nobody", "the other branch"])
def test_one_that_writes_to_its_gradient_is_blamed_where_others_are_given_it(spoils: bool) -> None:
    torch.manual_seed(0)
    report = check_module(WithInPlace(spoils), squared_error, (X, T))
    assert len(told(report, "writes to the gradient it is given")) == spoils
    if not spoils:
        assert told(report, "none of them makes the error when it is run alone")


# Calls without a gradient ----------------------------------------------------------------------------------------


class Logging(nn.Module):
    """Loses a path through `measure`, or through the square while `measure` is only logged."""

    def __init__(self, how: str, logs: bool) -> None:
        super().__init__()
        self.how, self.logs, self.layer, self.measure, self.log = how, logs, nn.Linear(3, 3), nn.Tanh(), torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        measured = self._measured(h)
        if not self.logs:
            return h * measured
        self.log = measured.detach()
        return h * h.detach()

    def _measured(self, h: Tensor) -> Tensor:
        if self.how == "under no_grad":
            with torch.no_grad():
                return self.measure(h)
        return self.measure(h.detach()) if self.how == "the input" else self.measure(h).detach()


@pytest.mark.parametrize("logs", [False, True], ids=["used", "logged"])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("under no_grad", "it calls measure under no_grad"),
        ("the input", "the input of measure is detached"),
        ("the output", "no gradient arrives at the output of measure"),
    ],
    ids=["no_grad", "input", "output"],
)
def test_what_is_only_logged_loses_no_gradient(how: str, words: str, logs: bool) -> None:
    torch.manual_seed(0)
    report = check_module(Logging(how, logs), squared_error, (X, T))
    assert report.culprit == ""
    assert bool(told(report, words)) != logs


def test_a_teacher_under_no_grad_loses_no_gradient() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)

    def closure() -> Tensor:
        with torch.no_grad():
            target = teacher(X)
        y = student(X)
        return (y * y.detach() - target).square().sum()

    assert told(check_closure(student, closure), "under no_grad") == []


# Sums that are right ---------------------------------------------------------------------------------------------


class Shift(torch.autograd.Function):
    """x + bias; wrong: the gradient of x, in a way that has no name, or that of the bias, by another sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, wrong: str) -> Tensor:
        ctx.wrong = wrong
        return x + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_x = grad + grad.roll(1, 0).square() if ctx.wrong == "x" else grad
        return of_x, grad[:3].sum(1) if ctx.wrong == "bias" else grad.sum(0), None


class Shifts(nn.Module):
    """Two shifts with biases, the later one wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong, self.first, self.last = wrong, nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return Shift.apply(torch.tanh(Shift.apply(x, self.first, "")), self.last, self.wrong)


def test_a_right_sum_of_a_wrong_gradient_is_not_called_wrong() -> None:
    torch.manual_seed(0)
    report = check_module(Shifts("x"), squared_error, (X[:3], T[:3]))
    assert {row.name: str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis} == {"first": "unknown"}


def test_a_wrong_sum_is() -> None:
    torch.manual_seed(0)
    report = check_module(Shifts("bias"), squared_error, (X[:3], T[:3]))
    assert {row.name: str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis} == {"last": "wrong_sum"}
