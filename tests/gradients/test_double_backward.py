"""What stands in the way of a double backward is found, with the Function and the module."""

from __future__ import annotations

from typing import Any

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


def refused_by(function: Any, power: int) -> Any:
    model, before = nn.Sequential(nn.Linear(2, 2), Layer(function)), current_backward()
    with DoubleBackwardRecord(model) as record:
        J = model(torch.ones(2)).pow(power).sum()
        torch.autograd.grad(J, list(model.parameters()), create_graph=True)
    assert current_backward() is before
    return record.refusals


def test_a_function_that_is_once_differentiable_is_named_with_its_module() -> None:
    (found,) = refused_by(OnceSine, power=2)
    assert found == ("OnceSineBackward", OnceSine, "1")


def test_it_is_where_autograd_would_say_nothing() -> None:
    """The gradient that it is given is constant, so that autograd takes what it gives for a constant."""
    (found,) = refused_by(OnceSine, power=1)
    assert found.function is OnceSine


def test_others_refuse_nothing() -> None:
    assert refused_by(Sine, power=2) == []


def test_an_operation_of_torchs_that_has_no_formula_is_named() -> None:
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    with DoubleBackwardRecord(model) as record:
        x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
        y = model(x, x, x, need_weights=False)[0]
        torch.autograd.grad(y.square().sum(), list(model.parameters()), create_graph=True)
    assert all(found.function is None and found.module == "" for found in record.refusals)


def test_a_backward_without_a_graph_is_not_looked_at() -> None:
    x = torch.ones(2, requires_grad=True)
    with DoubleBackwardRecord(nn.Sequential()) as record:
        torch.autograd.grad(OnceSine.apply(x, x).sum(), x)
    assert record.refusals == []


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
