"""The gradient by the record of J is the true one, whatever the backward on trial, its hooks and detachments say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.planted import SMALL, Planted
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.untraceable import Untraceable

UNTRACEABLE = {"branch-through-numpy", "scale-through-item", "reentrant-checkpoint"}
BUGS = [bug for bug in SMALL if bug.build(True).gradients is None and bug.mode == "eval"]
NOT_ASKED = {"nan-behind-a-mask", "reentrant-checkpoint"}
"""Bugs without a right gradient to compare with: it is not finite, or `torch.autograd.grad` cannot compute it."""
SEEN_THROUGH = [
    bug
    for bug in BUGS
    if bug.id not in UNTRACEABLE | NOT_ASKED and all(isinstance(part, Tensor) for part in bug.build(True).batch)
]


def gradient_by_record(model: nn.Module, J: Callable[[], Tensor]) -> list[Tensor | None]:
    return TracedEngine(J, list(model.parameters())).gradients()


def of_autograd(model: nn.Module, J: Callable[[], Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(J(), list(model.parameters()), allow_unused=True)


def problem(bug: Planted, wrong: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    built = bug.build(wrong)
    for tensor in (*built.model.parameters(), *built.model.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float64))
    model = built.model.double().eval()
    inputs, *targets = (t.double() if t.is_floating_point() else t for t in built.batch)
    return model, lambda: built.loss_fn(model(inputs), *targets)


@pytest.mark.slow_but_for(20)
@pytest.mark.parametrize("bug", SEEN_THROUGH, ids=lambda bug: bug.id)
def test_a_planted_mistake_does_not_reach_it(bug: Planted) -> None:
    found = gradient_by_record(*problem(bug, wrong=True))
    for mine, right in zip(found, of_autograd(*problem(bug, wrong=False)), strict=True):
        assert right is not None
        torch.testing.assert_close(torch.zeros_like(right) if mine is None else mine, right)


def test_it_is_not_finite_where_atens_own_formula_is_not() -> None:
    bug = next(bug for bug in SMALL if bug.id == "nan-behind-a-mask")
    assert not all(torch.isfinite(gradient).all() for gradient in gradient_by_record(*problem(bug, wrong=True)))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "convolutions": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
        torch.randn(3, 2, 6, 6),
    ),
    "batch norm": lambda: (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), torch.randn(6, 4)),
    "attention": lambda: (
        nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True, dropout=0.3),
        torch.randn(2, 3, 4),
    ),
    "recurrent": lambda: (Last(), torch.randn(3, 4, 2)),
    "in place": lambda: (nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), torch.randn(3, 4)),
}


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(2, 3, num_layers=2), nn.GRU(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_autograds_own_gradient_where_nothing_is_wrong(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model, x = model.double().train(training), x.double()

    def J() -> Tensor:
        torch.manual_seed(1)
        return model(x).square().sum()

    for mine, right in zip(gradient_by_record(model, J), of_autograd(model, J), strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-10)


def test_a_parameter_that_is_not_reached_has_none() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)]).double()
    found = gradient_by_record(model, lambda: model[0](torch.ones(1, 2, dtype=torch.float64)).sum())
    assert [gradient is None for gradient in found] == [False, False, True, True]


def test_an_operation_without_a_derivative_is_named() -> None:
    model = nn.Linear(2, 2).double()

    J = lambda: torch.special.zeta(2 + model.weight.abs(), torch.ones(2, 2).double()).sum()  # noqa: E731
    with pytest.raises(Untraceable, match=r"cannot be differentiated.*zeta"):
        gradient_by_record(model, J)


def test_the_gradient_through_a_gradient() -> None:
    model, x = nn.Linear(3, 1).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def J() -> Tensor:
        (slope,) = torch.autograd.grad(F.softplus(model(x)).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    for mine, right in zip(gradient_by_record(model, J), of_autograd(model, J), strict=True):
        torch.testing.assert_close(mine, right)
