"""What stands in the way of a double backward is found, with the Function and the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torch_gradcheck.gradients.double_backward import DoubleBackwardRecord, Intermediate, kept_intermediates
from torch_gradcheck.torch_internals.autograd import current_backward


class Sine(torch.autograd.Function):
    """sin(x); keeps cos(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Tensor) -> Tensor:
        ctx.save_for_backward(x.cos(), frozen)
        ctx.size = float(x.norm())
        return x.sin() + frozen

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        cos, _ = ctx.saved_tensors
        return grad * cos, None


class OnceSine(Sine):
    """The same, marked."""

    backward = once_differentiable(Sine.backward)  # type: ignore[assignment]


class Layer(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x, torch.ones(()))  # type: ignore[no-any-return]


def recorded(model: nn.Module, x: Tensor, power: int = 2) -> DoubleBackwardRecord:
    before = current_backward()
    with DoubleBackwardRecord(model) as record:
        J = model(x).pow(power).sum()
        torch.autograd.grad(J, list(model.parameters()), create_graph=True)
    assert current_backward() is before
    return record


@pytest.mark.parametrize("power", [2, 1], ids=["autograd raises", "autograd would say nothing"])
def test_a_function_that_is_once_differentiable_is_named_with_its_module(power: int) -> None:
    found = recorded(nn.Sequential(nn.Linear(2, 2), Layer(OnceSine)), torch.ones(2), power).once_differentiable()
    assert found == ("OnceSineBackward", OnceSine, "1")


def test_others_are_not() -> None:
    record = recorded(nn.Sequential(nn.Linear(2, 2), Layer(Sine)), torch.ones(2))
    assert record.once_differentiable() is None


class Distances(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x + 1)


def test_an_operation_of_torchs_that_has_no_formula_is_named() -> None:
    record = recorded(nn.Sequential(nn.Linear(2, 3), Distances()), torch.eye(2))
    assert record.runs("_cdist_backward") == ("CdistBackward0", None, "1")
    assert record.runs("_pdist_backward") is None


def test_a_backward_without_a_graph_is_not_looked_at() -> None:
    x = torch.ones(2, requires_grad=True)
    with DoubleBackwardRecord(nn.Sequential()) as record:
        torch.autograd.grad(OnceSine.apply(x, x).sum(), x)
    assert record.once_differentiable() is None


def test_intermediates_that_move_with_the_inputs_are_found() -> None:
    x, moved = (torch.tensor([value, 2.0], requires_grad=True) for value in (1.0, 1.001))
    found = kept_intermediates([Sine.apply(x, torch.ones(2))], [Sine.apply(moved, torch.ones(2))])
    assert found == [Intermediate(Sine, "ctx.saved_tensors[0]"), Intermediate(Sine, "ctx.size")]


def test_a_moved_input_that_requires_no_gradient_is_no_intermediate() -> None:
    x, frozen, moved = torch.ones(2, requires_grad=True), torch.ones(2), torch.full((2,), 1.001)
    assert kept_intermediates([Sine.apply(x, frozen)], [Sine.apply(x, moved)], [moved]) == []


def test_runs_of_other_calls_say_nothing() -> None:
    x = torch.ones(2, requires_grad=True)
    assert kept_intermediates([Sine.apply(x, x)], [OnceSine.apply(x, x)]) == []
