"""A sum of two gradients times one factor is what was accumulated and clipped; other sums are not."""

from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.reporting.facts import Diagnosis
from torch_gradcheck.training_step.accumulated import accumulated_and_clipped

DRAW = np.random.default_rng(6)
RIGHT, OTHER = ({at: DRAW.normal(size=size) for at, size in ((0, 12), (1, 4))} for _ in range(2))
BAR = 1e-6


def told(given: dict[int, Floats], limit: float = 1.0, other: dict[int, Floats] = OTHER) -> Diagnosis | None:
    """The diagnosis of what is given, beside the right gradients clipped to `limit` times what they are."""
    evidences = {at: Evidence.of(given[at], limit * RIGHT[at], RIGHT[at], limit * BAR) for at in given}
    return accumulated_and_clipped(evidences, RIGHT, "another one", other)


@pytest.mark.parametrize("limit", [1.0, 0.02], ids=["not declared", "declared"])
@pytest.mark.parametrize("factor", [0.5, 0.03], ids=str)
def test_one_factor_on_the_sum(factor: float, limit: float) -> None:
    found = told({at: factor * (RIGHT[at] + OTHER[at]) for at in RIGHT}, limit)
    assert found is not None
    assert (found.kind, found.factor) == ("accumulated", pytest.approx(factor))
    assert "the right gradient plus another one" in found.message


@pytest.mark.parametrize(
    "factors",
    [
        pytest.param({0: (0.5, 0.5), 1: (0.25, 0.25)}, id="another factor in one of them"),
        pytest.param({0: (0.5, 0.45), 1: (0.5, 0.45)}, id="another factor on the other"),
        pytest.param({0: (0.5, 0.0), 1: (0.5, 0.0)}, id="nothing of the other"),
        pytest.param({0: (1.5, 1.5), 1: (1.5, 1.5)}, id="scaled up"),
    ],
)
def test_near_misses_are_not_told(factors: dict[int, tuple[float, float]]) -> None:
    assert told({at: one * RIGHT[at] + other * OTHER[at] for at, (one, other) in factors.items()}) is None


def test_what_is_within_the_error_bars_is_not_seen() -> None:
    small = {at: 1e-6 * values for at, values in OTHER.items()}
    assert told({at: 0.5 * (RIGHT[at] + small[at]) for at in RIGHT}, other=small) is None
