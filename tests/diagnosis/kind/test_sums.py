"""A vector's gradient is recognised as another sum than the right one, and only where it is exactly that."""

from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.sums import wrong_sum

DRAW = np.random.default_rng(2)
UP, X = DRAW.normal(size=(5, 5)), DRAW.normal(size=(5, 5))
RIGHT = UP.sum(0)


def told(on_trial: Floats, right: Floats = RIGHT) -> str:
    found = wrong_sum(Evidence.of(on_trial, right, np.ones(len(right)), 1e-10), UP, {"x": X})
    return "" if found is None else f"{found.kind}: {found.message}"


@pytest.mark.parametrize(
    ("on_trial", "words"),
    [
        pytest.param(UP.sum(1), "wrong_sum: dθ is the sum of the upstream gradient over axis 1, where", id="axis"),
        pytest.param(UP[3], "row 3 of the upstream gradient, where the sum of the upstream gradient", id="one row"),
        pytest.param((UP * X).sum(0), "the upstream gradient times x over axis 0, where", id="other factor"),
    ],
)
def test_what_was_summed(on_trial: Floats, words: str) -> None:
    assert words in told(on_trial)


def test_a_right_sum_that_is_none_of_these_is_not_named() -> None:
    assert told(UP.sum(1), X[0]).endswith("which is not the right one")


@pytest.mark.parametrize(
    "on_trial", [UP.sum(1) * (1 + 1e-6), UP.sum(1) + 1e-7 * X[0], np.zeros(5)], ids=["scaled", "noise", "zero"]
)
def test_near_misses_are_not_told(on_trial: Floats) -> None:
    assert told(on_trial) == ""


def test_two_entries_prove_no_sum() -> None:
    short = UP[:, :2]
    assert wrong_sum(Evidence.of(short[1], short.sum(0), np.ones(2)), short, {}) is None
