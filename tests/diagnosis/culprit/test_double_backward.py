"""J differentiates a backward once more, as a gradient penalty does: a Function that loses a path there is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.culprit.test_functions import Module, accused
from torch_gradcheck import Report, check_closure, check_module
from torch_gradcheck.diagnosis.culprit.double_backward import gradients_with_graph

X = torch.linspace(-1, 1, 15).view(5, 3)


def cubic(backward: Callable[[Tensor, Tensor], Any]) -> Any:
    """The Function x³ whose backward is made of the gradient that it is given and of x."""

    class Cubic(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
            return backward(grad, *ctx.saved_tensors)

    return Cubic


def without_graph(grad: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        return grad * 3 * x**2


class Triple(torch.autograd.Function):
    """g·3x², and what it gives for x is 1.3 times too large."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return grad * 3 * x**2

    @staticmethod
    def backward(ctx: Any, again: Tensor) -> Any:  # type: ignore[override]
        grad, x = ctx.saved_tensors
        return again * 3 * x**2, 1.3 * again * grad * 6 * x


LOST = {
    "of x": (lambda grad, x: grad * 3 * x.detach() ** 2, "for x, in its backward at"),
    "of the gradient": (
        lambda grad, x: grad.detach() * 3 * x**2,
        "for the gradient that it is given, in its backward",
    ),
    "of both": (without_graph, "for the gradient that it is given, x, in its backward at"),
}


def right(grad: Tensor, x: Tensor) -> Tensor:
    return grad * 3 * x**2


class Penalised(nn.Module):
    """A network whose output is put beside its gradient for the input."""

    def __init__(self, backward: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(5)
        function = cubic(backward)
        self.net = nn.Sequential(nn.Linear(3, 4), Module(lambda self, x: function.apply(x)), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = self.net(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.cat([y, slope], 1)


def penalised(backward: Callable[[Tensor, Tensor], Any]) -> Report:
    return check_module(Penalised(backward), lambda y: y.square().mean(), X)


@pytest.mark.parametrize(("backward", "words"), LOST.values(), ids=LOST)
def test_the_function_that_loses_a_path_is_named(backward: Callable[[Tensor, Tensor], Any], words: str) -> None:
    report = penalised(backward)
    assert report.culprit == "net.1"
    (note,) = accused(report)
    assert note.startswith(
        "the mistake is in the double backward of net.1 (Module): autograd.Function Cubic, when its "
    )
    assert f"its backward is differentiated once more, gives a wrong gradient {words}" in note


def test_a_right_one_is_not_accused() -> None:
    assert penalised(right).passed


def test_a_function_inside_of_the_backward_is_named_itself() -> None:
    report = penalised(Triple.apply)
    assert report.culprit == "net.1"
    (note,) = accused(report)
    assert "autograd.Function Triple gives a wrong gradient for x, in its backward at" in note


def test_a_wrong_first_backward_is_named_and_nothing_beside_it() -> None:
    report = penalised(lambda grad, x: 1.3 * grad * 3 * x**2)
    assert report.culprit == "net.1"
    (note,) = accused(report)
    assert "the mistake is in the backward of net.1 (Module): autograd.Function Cubic gives a wrong gradient" in note


def penalty_on_features(front: Callable[[Tensor, Tensor], Any], back: Callable[[Tensor, Tensor], Any]) -> Report:
    """A penalty on the gradient of the second half for the features that the first half gives."""
    torch.manual_seed(3)
    first, second = cubic(front), cubic(back)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(3, 3), Module(lambda self, x: first.apply(x))),
        nn.Sequential(nn.Linear(3, 4), Module(lambda self, x: second.apply(x)), nn.Linear(4, 1)),
    )

    def closure() -> Tensor:
        features = model[0](X.to(model[0][0].weight.dtype))
        y = model[1](features)
        (slope,) = torch.autograd.grad(y.sum(), features, create_graph=True)
        return y.square().mean() + (slope.norm(dim=1) - 1).square().mean()

    return check_closure(model, closure)


@pytest.mark.parametrize(
    ("front", "back", "name"),
    [(lambda grad, x: 1.3 * right(grad, x), right, "0.1"), (right, LOST["of x"][0], "1.1")],
    ids=["wrong before the penalty", "lost inside of it"],
)
def test_in_a_closure(front: Any, back: Any, name: str) -> None:
    report = penalty_on_features(front, back)
    assert report.culprit == name
    assert len(accused(report)) == 1


def test_of_right_halves_nothing_is_said() -> None:
    assert penalty_on_features(right, right).passed


def test_a_backward_as_a_function_of_its_own() -> None:
    """Differentiated: d(g·3x²) = 3x² dg + 6gx dx."""
    x, grad = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 4.0], requires_grad=True)
    (found,) = gradients_with_graph(cubic(right), [x], [0], [grad])
    assert found.tolist() == [9.0, 48.0]
    of_grad, of_x = torch.autograd.grad(found.sum(), [grad, x])
    assert of_grad.tolist() == [3.0, 12.0]
    assert of_x.tolist() == [18.0, 48.0]


def test_a_backward_without_a_gradient_gives_none() -> None:
    assert gradients_with_graph(cubic(right), [torch.ones(2)], [0], [None]) == []
    assert gradients_with_graph(cubic(lambda grad, x: None), [torch.ones(2)], [0], [torch.ones(2)]) == []
