"""Which directions cross a kink of an operation, whatever J makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.borrowing.loan import lend
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.directional.motions import Motion
from torch_gradcheck.methods.directional.quantities import DISTANCE, Quantities
from torch_gradcheck.objective.preflight import preflighted
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.progress import SILENT


class Of(nn.Module):
    """J of one vector."""

    def __init__(self, J: Callable[[Tensor], Tensor], at: list[float]) -> None:
        super().__init__()
        self.w, self.J = nn.Parameter(torch.tensor(at, dtype=torch.float64)), J

    def value(self) -> Tensor:
        return self.J(self.w)


def have_one_slope(J: Callable[[Tensor], Tensor], at: list[float], along: list[float], points: int = 0) -> bool:
    model = Of(J, at)
    theta = theta_of(model)
    with lend(model, [], "eval", torch.float64, 0) as borrowed:
        objective = preflighted(model, model.value, borrowed, torch.float64)
        directions = Directions(objective, theta, 0, SILENT)
        beside = [directions.random(k, {0: DISTANCE}) for k in range(points)]
        record = TracedEngine(objective, [model.w])
        direction = {0: Motion(1.0, torch.tensor(along, dtype=torch.float64))}
        found = Quantities(record, directions, objective).have_one_slope(direction, 1.0, beside)
    assert model.w.tolist() == at
    return found


def masked(x: Tensor) -> Tensor:
    return x.masked_fill(torch.tensor([False, True]), -torch.inf).softmax(0).sum()


def wiggly(x: Tensor) -> Tensor:
    return (torch.sin(50 * x).exp() * x.cumsum(0) ** 2).sum()


@pytest.mark.parametrize(
    ("J", "at", "along", "one"),
    [
        pytest.param(lambda x: x.amax(), [1.0, 1.0, 0.5], [1.0, 1.0, 0.0], True, id="tied move together"),
        pytest.param(lambda x: x.amax(), [1.0, 1.0, 0.5], [1.0, 0.0, 0.0], False, id="one of them moves"),
        pytest.param(lambda x: x.abs().amax(), [1.0, -1.0], [1.0, -1.0], True, id="tied in size"),
        pytest.param(lambda x: (x.relu() - (-x).relu()).sum(), [0.0], [1.0], False, id="kinks that cancel in J"),
        pytest.param(lambda x: (0 * x.relu() + x).sum(), [0.0], [1.0], False, id="a kink that J does not have"),
        pytest.param(lambda x: (x**2).sum(), [0.0], [1.0], True, id="only curved"),
        pytest.param(wiggly, [0.3, -0.2], [1.0, 2.0], True, id="much curved"),
        pytest.param(lambda x: torch.where(x == 0, 0, x).sum(), [0.0], [1.0], True, id="no kink but a choice"),
        pytest.param(masked, [0.3, 0.4], [1.0, 1.0], True, id="minus infinity of a mask"),
        pytest.param(lambda x: x.median(), [0.0, 0.0, 0.0], [1.0, 0.0, -1.0], False, id="pieces meet beside it"),
    ],
)
def test_a_kink_is_seen_in_every_quantity(
    J: Callable[[Tensor], Tensor], at: list[float], along: list[float], one: bool
) -> None:
    assert have_one_slope(J, at, along, points=6) is one


def test_a_median_of_ties_has_one_slope_at_theta_alone() -> None:
    assert have_one_slope(lambda x: x.median(), [0.0, 0.0, 0.0], [1.0, 0.0, -1.0])
