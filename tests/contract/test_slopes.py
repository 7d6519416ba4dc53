"""A slope along one direction: right, wrong or unknown, at a kink, in noise, and where the prediction is rounded."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torch_gradcheck.contract.slopes import Precision, Verdict, bears_out, judged

PRECISION = Precision(epsilon=2.2e-16, tolerance=1e-5, scale=1.0)


def verdict(value, slope: float, precision: Precision = PRECISION) -> Verdict:  # type: ignore[no-untyped-def]
    return judged(value, lambda _: slope, precision).verdict


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        pytest.param(1.0, Verdict.RIGHT, id="right"),
        pytest.param(1 + 1e-9, Verdict.RIGHT, id="rounded"),
        pytest.param(1.01, Verdict.WRONG, id="one per cent off"),
        pytest.param(1 + 5e-5, Verdict.WRONG, id="off by five tolerances"),
        pytest.param(0.0, Verdict.WRONG, id="lost"),
        pytest.param(-1.0, Verdict.WRONG, id="negated"),
        pytest.param(math.nan, Verdict.UNKNOWN, id="not a number"),
    ],
)
def test_of_a_smooth_function(slope: float, expected: Verdict) -> None:
    assert verdict(np.exp, slope) is expected


def test_a_right_slope_takes_four_values() -> None:
    steps: list[float] = []

    def value(step: float) -> float:
        steps.append(step)
        return math.sin(step)

    assert judged(value, lambda _: 1.0, PRECISION).verdict is Verdict.RIGHT
    assert len(steps) == 4


def test_at_a_kink_nothing_is_known_unless_the_slope_is_that_of_both_sides() -> None:
    assert verdict(lambda t: max(t, 0.0), 1.0) is Verdict.UNKNOWN
    assert verdict(lambda t: max(t, 0.0), 0.5) is Verdict.RIGHT  # that is what centered differences give


def test_without_values_nothing_is_known() -> None:
    assert verdict(lambda _: math.nan, 1.0) is Verdict.UNKNOWN


def test_in_noise_nothing_is_known() -> None:
    draws = np.random.default_rng(0)
    assert verdict(lambda t: t * 1e-3 + draws.normal(), 1e-3) is Verdict.UNKNOWN


def test_a_constant_has_slope_zero() -> None:
    assert verdict(lambda _: 3.0, 0.0) is Verdict.RIGHT
    assert verdict(lambda _: 3.0, 1e-3) is Verdict.WRONG


def test_a_prediction_that_cancellation_has_rounded_may_be_off_by_as_much() -> None:
    rounded = judged(lambda t: 1e-4 * t, lambda t: 1e-4 + 1e-7 * math.cos(1e17 * t), PRECISION)
    assert rounded.verdict is Verdict.RIGHT
    assert judged(lambda t: 1e-4 * t, lambda t: 1e-4 + 1e-7, PRECISION).verdict is Verdict.WRONG


def test_a_slope_in_words() -> None:
    assert str(judged(np.exp, lambda _: 2.0, PRECISION)).startswith("2, where centered differences give 1 ± ")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param((1.0, 1e-6), True, id="right"),
        pytest.param((1.0, 2e-6), False, id="a small part doubled"),
        pytest.param((1.0, 0.0), False, id="a small part lost"),
        pytest.param((0.0, 1.0), False, id="parts exchanged, and one lost"),
        pytest.param((1.0, math.nan), False, id="not a number"),
    ],
)
def test_parts_of_a_slope_are_borne_out_together(parts: tuple[float, float], expected: bool) -> None:
    assert bears_out(lambda t: math.sin(t) + 1e-6 * t, parts, PRECISION) is expected
