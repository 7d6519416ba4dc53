from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.borrowing.loan import lend
from torch_gradcheck.errors import (
    InvalidRequestError,
    NonDeterministicLossError,
    NonFiniteLossError,
    NonScalarLossError,
)
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.preflight import check_unchanged, preflighted

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def settled(
    model: nn.Module, closure: Callable[[], Any], then: Callable[[Objective], Any] = lambda objective: None
) -> Objective:
    with lend(model, [closure], "train", torch.float64, seed=0) as borrowed:
        objective = preflighted(model, closure, borrowed, torch.float64)
        then(objective)
    return objective


def test_the_loss_is_that_at_the_weights_in_float64() -> None:
    model = nn.Linear(3, 1)
    with torch.no_grad():
        expected = nn.functional.linear(X.double(), model.weight.double(), model.bias.double()).square().mean()
    objective = settled(model, lambda: model(X).square().mean())
    assert objective.loss == expected.item()
    assert objective.evaluations == 2
    assert objective.spread == 0.0


def test_a_plain_loss_needs_no_graph() -> None:
    model = nn.Linear(3, 1)
    objective = settled(model, lambda: model(X).sum())
    assert not objective.needs_graph
    assert not objective.runs_backward


def test_a_loss_that_calls_autograd_needs_one() -> None:
    model = nn.Linear(3, 1)

    def penalty() -> Tensor:
        x = X.clone().requires_grad_()
        [g] = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
        return g.square().sum()

    assert settled(model, penalty).needs_graph


def test_a_loss_that_is_another_function_without_a_graph_needs_one() -> None:
    model = nn.Linear(3, 1)
    assert settled(model, lambda: model(X).sum() * (2 if torch.is_grad_enabled() else 1)).needs_graph


def test_a_closure_that_runs_backward_is_noticed() -> None:
    model = nn.Linear(3, 1)

    def closure() -> Tensor:
        loss = model(X).sum()
        loss.backward()
        return loss

    assert settled(model, closure).runs_backward


def test_overridden_casts_are_noticed_with_their_module() -> None:
    class Casts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float().half()

    model = nn.Sequential(nn.Linear(3, 3), Casts(3, 1))
    assert set().union(*settled(model, lambda: model(X).sum()).overridden.values()) == {"1"}


def test_dropout_and_batchnorm_are_the_same_at_every_evaluation() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    values: list[float] = []
    objective = settled(model, lambda: model(X).sum(), lambda J: values.extend(J.value() for _ in range(5)))
    assert set(values) == {objective.loss}


NOT_SCALAR = {
    "several": (lambda model: model(X), r"shape \(4, 1\) with 4 entries.*reduce it"),
    "number": (lambda model: 3.0, "the loss function returned a float, not a tensor"),
    "nothing": (lambda model: None, "the loss function returned None"),
    "complex": (lambda model: model(X).sum() * 1j, "returned a complex number"),
    "integer": (lambda model: model(X).sum().long(), "dtype torch.int64, which has no gradient"),
    "empty": (lambda model: model(X)[:0], "with 0 entries"),
}


@pytest.mark.parametrize(("loss", "words"), NOT_SCALAR.values(), ids=NOT_SCALAR)
def test_not_one_real_number(loss: Callable[[nn.Module], Any], words: str) -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(NonScalarLossError, match=words):
        settled(model, lambda: loss(model))


def test_one_entry_is_a_scalar() -> None:
    model = nn.Linear(3, 1)
    objective = settled(model, lambda: model(X).sum().reshape(1, 1))
    assert math.isfinite(objective.loss)


class Bad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log() - x.log()


def test_the_first_module_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Bad()), nn.Linear(3, 1))
    model[0].bias.data.fill_(-100)
    with pytest.raises(
        NonFiniteLossError, match=r"first module whose output is not finite is '1\.1' \(Bad\)"
    ) as caught:
        settled(model, lambda: model(X).sum())
    assert caught.value.module == "1.1"


def test_a_loss_that_is_not_finite_by_itself() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(NonFiniteLossError, match="every module's output is finite: it arises in the loss") as caught:
        settled(model, lambda: model(X).sum() / 0)
    assert caught.value.module is None


def test_a_parameter_that_is_not_finite() -> None:
    model = nn.Linear(3, 1)
    model.weight.data[0, 1] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"parameter 'weight' holds 1 of 3 entries not finite .* at \(0, 1\)"):
        settled(model, lambda: model(X).sum())


class Counting(nn.Module):
    calls = count(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + next(Counting.calls)


def test_the_first_module_that_changes_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Counting(), nn.Linear(3, 1))
    with pytest.raises(
        NonDeterministicLossError, match=r"first module whose output changes is '1' \(Counting\)"
    ) as caught:
        settled(model, lambda: model(X).sum())
    assert caught.value.module == "1"


def test_a_loss_that_changes_by_itself() -> None:
    model, calls = nn.Linear(3, 1), iter(range(100))
    with pytest.raises(NonDeterministicLossError, match="it is the loss function or closure") as caught:
        settled(model, lambda: model(X).sum() + next(calls))
    assert caught.value.module is None


def test_a_loss_that_starts_to_change_later_is_noticed() -> None:
    model, calls = nn.Linear(3, 1), iter([0] * 5 + [1] * 100)

    def later(objective: Objective) -> None:
        for _ in range(3):
            objective.value()
        check_unchanged(objective)

    with pytest.raises(NonDeterministicLossError, match=r"two equal calls gave J\(θ\)"):
        settled(model, lambda: model(X).sum() + next(calls), later)


def test_a_difference_of_a_few_roundings_is_noise() -> None:
    model, calls = nn.Linear(3, 1), iter(range(100))
    objective = settled(model, lambda: model(X).square().sum() * (1 + (next(calls) % 2) * 2.0**-50), check_unchanged)
    assert 0 < objective.spread < 1e-14 * objective.loss


class NoKernel(nn.Linear):
    """As experts of transformers' mixtures are: a kernel for float32 and lower only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.float64:
            raise RuntimeError("Expected mat_a to be Float32, BFloat16 or Float16 matrix, got Double")
        return super().forward(x)


def test_a_kernel_that_float64_does_not_have() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), NoKernel(3, 2))
    with pytest.raises(InvalidRequestError, match=r"dtype=torch.float64: '1' \(NoKernel\) uses .* dtype=torch.float32"):
        check_module(model, torch.sum, torch.randn(4, 3))
    assert check_module(model, torch.sum, torch.randn(4, 3), dtype=torch.float32).passed
