from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.zoo.unrepeatable import (
    Act,
    Spoil,
    adds_up,
    every_second_doubled,
    first_doubled,
    intact,
    noisy,
    summed_in_any_order,
)
from torch_gradcheck.borrowing.loan import lend
from torch_gradcheck.gradients.repeated import MARGIN, RepeatedGradients, repeated_gradients
from torch_gradcheck.objective.preflight import preflighted
from torch_gradcheck.objective.theta import theta_of

TOLERANCE = 1e-5


class Two(nn.Module):
    """J = Σ swish(w) + Σ v: the gradient of w is spoilt, that of v is 1."""

    def __init__(self, spoil: Spoil) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 2.0, 6, dtype=torch.float64))
        self.v = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.act = Act(spoil)

    def forward(self) -> Tensor:
        return self.act(self.w).sum() + self.v.sum()


def repeated(spoil: Spoil, resolved: float = 0.0) -> tuple[RepeatedGradients, int]:
    """The two gradients, w's at 0 and v's at 1, and how often J was evaluated."""
    model = Two(spoil)
    with lend(model, [], "keep", torch.float64, seed=0) as borrowed:
        objective = preflighted(model, model, borrowed, torch.float64)
        before = objective.evaluations
        found = repeated_gradients(objective, theta_of(model), TOLERANCE, lambda: resolved)
        return found, objective.evaluations - before


def test_equal_runs() -> None:
    found, evaluations = repeated(intact)
    assert evaluations == 2
    assert found.difference is None
    assert found.rounding == 0.0
    assert [gradient.error_bar for gradient in found.gradients.values()] == [0.0, 0.0]


@pytest.mark.parametrize("size", [1e-9, 3e-6], ids=["far below the tolerance", "below the tolerance"])
def test_what_may_be_rounding_joins_the_error_bar(size: float) -> None:
    found, evaluations = repeated(noisy(size))
    assert evaluations == 2
    assert found.difference is None
    assert size / 10 < found.rounding < 3 * size
    largest = float(np.max(found.gradients[0].values))
    assert found.gradients[0].error_bar == pytest.approx(MARGIN * found.rounding * largest, rel=1e-3)
    assert found.gradients[1].error_bar == 0.0


def test_sums_in_any_order_are_far_below() -> None:
    found, _ = repeated(summed_in_any_order())
    assert found.difference is None
    assert 0 < found.rounding < 1e-14


def test_a_gradient_of_zero_by_cancellation_may_be_all_rounding() -> None:
    """Relative to its own entries everything; relative to those of v, which are 1, a few machine epsilons."""
    spoil = noisy(1.0)
    found, _ = repeated(lambda gradient: 1e-14 * spoil(torch.ones_like(gradient)))
    assert found.difference is None
    spoil = noisy(1.0)
    found, _ = repeated(lambda gradient: 1e-10 * spoil(torch.ones_like(gradient)))
    assert found.difference is not None


def test_what_differences_do_not_resolve_is_no_finding() -> None:
    found, _ = repeated(noisy(), resolved=1.0)
    assert found.difference is None
    assert found.gradients[0].error_bar > 0.01
    found, _ = repeated(noisy(), resolved=0.1)  # the difference is less, but the gradient is seen
    assert found.difference is not None


PATTERNS: dict[str, tuple[Callable[[], Spoil], int, list[list[bool]]]] = {
    "first": (first_doubled, 3, [[True, False, False], [False, True, True], [False, True, True]]),
    "none alike": (noisy, 3, np.eye(3, dtype=bool).tolist()),
    "adds up": (adds_up, 3, np.eye(3, dtype=bool).tolist()),
    "every second": (every_second_doubled, 4, [[True, False, True, False], [False, True, False, True]] * 2),
}


@pytest.mark.parametrize(("spoil", "runs", "alike"), PATTERNS.values(), ids=PATTERNS)
def test_more_than_rounding(spoil: Callable[[], Spoil], runs: int, alike: list[list[bool]]) -> None:
    found, evaluations = repeated(spoil())
    assert evaluations == runs
    assert found.difference is not None
    assert found.difference.alike.tolist() == alike
    assert found.difference.runs.shape == (runs, 6)
    assert list(found.difference.spreads) == [0]
    assert found.difference.worst == 0
    assert found.difference.allowed == pytest.approx(TOLERANCE)
    assert found.difference.place is not None
    assert found.difference.place.module == "act"
    assert found.gradients[0].error_bar == math.inf
    assert found.gradients[1].error_bar == 0.0


def test_nan_in_one_run_is_as_far_as_can_be_and_in_both_no_difference() -> None:
    calls: list[None] = []

    def nan_at_first(gradient: Tensor) -> Tensor:
        calls.append(None)
        return gradient * (math.nan if len(calls) == 1 else 1.0)

    found, _ = repeated(nan_at_first)
    assert found.difference is not None
    assert found.difference.spread == math.inf
    assert found.difference.place is not None
    found, evaluations = repeated(lambda gradient: gradient * math.nan)
    assert found.difference is None
    assert evaluations == 2
