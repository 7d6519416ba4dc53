"""Of second order, what no Function does wrong is named by the node, and a wrong first order before all else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.second_order import noise
from torch_gradcheck import check_module
from torch_gradcheck.diagnosis.culprit.gradient_nodes import first_wrong_node
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.objective.function_call import function_call
from torch_gradcheck.objective.function_loss import FunctionLoss, FunctionModule
from torch_gradcheck.objective.loss import ModuleLoss
from torch_gradcheck.request import Request, validated_request


class Gated(nn.Module):
    """h · σ(h) whose gate is detached: the first-order gradient is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h * torch.sigmoid(h.detach())  # type: ignore[no-any-return]


def test_a_wrong_first_order_is_said_first_and_its_culprit_is_named() -> None:
    torch.manual_seed(0)
    report = check_module(nn.Sequential(Gated(), nn.Tanh()), lambda y: y.square().sum(), noise(3, 4), order=2)
    assert not report.passed
    assert report.culprit == "0"
    assert report.notes[1].startswith("by a check of order=1, the mistake is in 0 (Gated): in its own forward")
    assert report.notes[2].startswith(
        "the first-order gradient is wrong already: along v the loss itself has the slope"
    )


class Held(torch.autograd.Function):
    """Its backward reads a value that a module has detached: right of first order, and constant of second."""

    @staticmethod
    def forward(ctx, x: Tensor, detached: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(detached)
        return x.square()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def,override]
        (detached,) = ctx.saved_tensors
        return 2 * grad * detached, None


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return Held.apply(h, h.detach())  # type: ignore[no-any-return,no-untyped-call]


def test_the_first_node_whose_gradient_moves_otherwise_is_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Squared())
    report = check_module(model, lambda y: y.square().sum(), noise(3, 4), order=2)
    assert {row.name for row in report.mismatches} >= {"2.linear.weight", "0.weight"}
    assert report.culprit == "2"
    assert any("autograd.Function Held" in note for note in report.notes)
    assert "test_of_slope.py:63 is meant to be held" in report.notes[0]


def of_second_order(model: nn.Module) -> Request:
    return validated_request(
        model,
        ["exact"],
        **dict.fromkeys(["gradients", "eps", "tolerance", "include", "exclude", "progress"]),
        method="exact",
        mode="eval",
        dtype=torch.float64,
        seed=0,
        perturb=0.0,
        hold_detached=False,
        order=2,
    )


def test_a_node_by_which_outputs_are_bent_is_none_of_the_functions() -> None:
    model, loss = FunctionModule(), FunctionLoss(function_call(Gate(), (noise(3, 4),)), seed=0, is_bent=True)
    with posed(model, loss, of_second_order(model)) as problem:
        wrong = WrongCoordinate(problem.theta[0], 2, 1.0, 2.0, 0.0, 1.0)
        assert first_wrong_node(problem.objective, wrong) is None


class Gate:
    """x · σ(x), detached: y moves otherwise than autograd says, and so does what is made of it by the check."""

    def __call__(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.detach())


def test_a_right_slope_has_no_such_node() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    request = of_second_order(model)
    with posed(model, ModuleLoss(model, lambda y: y.square().sum(), noise(3, 4)), request) as problem:
        wrong = WrongCoordinate(problem.theta[0], 2, 1.0, 2.0, 0.0, 1.0)
        assert first_wrong_node(problem.objective, wrong) is None
