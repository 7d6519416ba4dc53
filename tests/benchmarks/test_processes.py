"""The models of the benchmark of several processes, and what docs/theory/scaling.md makes of its figures."""

from __future__ import annotations

from typing import Any

import pytest

import scaling
import shared_models


@pytest.mark.parametrize("key", [*shared_models.SMALL, "recurrent", "kinks"])
def test_models_are_built_the_same_each_time(key: str) -> None:
    one, other = (shared_models.built(key) for _ in range(2))
    assert all(map(equal, one.model.parameters(), other.model.parameters()))
    assert shared_models.loss_of(one, one.model.double()).item() == shared_models.loss_of(other, other.model.double())


def equal(one: Any, other: Any) -> bool:
    return bool((one == other).all())


def comparison(one: float, two: float, four: float) -> dict[str, Any]:
    """As in the file of results."""
    busiest = {"1": [one], "2": [two], "4": [four]}
    return {
        "case": "a model",
        "method": "exact",
        "coordinates": 50,
        "evaluation": 0.1,
        "busiest": busiest,
    }


def test_the_constants_are_those_of_one_and_two_ranks() -> None:
    fit = scaling.fit(comparison(one=11.0, two=6.0, four=3.5))
    assert (fit.set_up, fit.split) == (1.0, 10.0)
    assert fit.seconds(4) == 3.5


def test_two_ranks_that_took_less_than_half_leave_nothing_to_set_up() -> None:
    fit = scaling.fit(comparison(one=10.0, two=4.0, four=2.0))
    assert (fit.set_up, fit.split) == (0.0, 10.0)


@pytest.mark.parametrize(
    ("seconds", "spoken"),
    [(0.5, "0.5 s"), (95, "95 s"), (150, "2.5 min"), (7200, "2 h"), (864000, "10 days"), (3.2e12, "100,000 years")],
)
def test_times_have_the_unit_that_suits_them(seconds: float, spoken: str) -> None:
    assert scaling.spoken(seconds) == spoken


def test_the_page_is_that_of_the_results() -> None:
    """`python benchmarks/scaling.py` writes its tables."""
    text = scaling.PAGE.read_text()
    assert scaling.with_figures(text) == text
