"""A gradient that grows from run to run is told to add up only where it grows by the same amount."""

from __future__ import annotations

import pytest

from torch_gradcheck.diagnosis.unrepeatable import adds_up


@pytest.mark.parametrize(
    ("second", "third", "expected"),
    [(2.0, 3.0, True), (1.5, 2.0, True), (2.0, 4.0, False), (0.73, 0.474, False), (1.0, 1.0, False)],
    ids=["once more each time", "half of it each time", "doubled each time", "random factors", "the same"],
)
def test_adds_up(second: float, third: float, expected: bool) -> None:
    assert adds_up(second, third) is expected
