"""The benchmark of models that decide by values runs, and each of its models is recorded."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import decisions


@pytest.mark.parametrize("name", ["fixed point", "adaptive ODE", "PatchTST, likelihood", "olmoe, grouped_mm"])
def test_a_model_is_recorded_and_right(name: str) -> None:
    seconds, evaluations, outcome = decisions.timed(name)
    assert seconds is not None, outcome
    assert evaluations is not None, outcome
    assert "mismatch" not in outcome
    assert "one coordinate at a time" not in outcome


def test_ratios_are_those_of_one_turn() -> None:
    turns = [
        {decisions.DENSE: (2.0, 10, ""), "fixed point": (1.0, 20, "6 match")},
        {decisions.DENSE: (1.0, 10, ""), "fixed point": (3.0, 20, "6 match")},
    ]
    found = decisions.timing("fixed point", turns)
    assert found.times_dense == 1.75
    assert found.median_seconds == 2.0
    assert found.evaluations == 20


def test_a_refused_model_has_no_figures() -> None:
    found = decisions.timing(
        "fixed point", [{decisions.DENSE: (2.0, 10, ""), "fixed point": (None, None, "Error: no")}]
    )
    assert found.median_seconds is None
    assert found.times_dense is None
    assert found.outcome == "Error: no"
