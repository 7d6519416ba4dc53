from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.methods.projected.slopes import (
    TOP_BY_QUIET,
    Predicted,
    SlopeCheck,
    checks_at_best_step,
    checks_at_step,
    quiet_step,
)

EPS = float(np.finfo(np.float64).eps)
NOISE = Noise(at_zero=1.0, sigma=EPS / 4, epsilon=EPS)
TOLERANCE = 1e-5
TOP = TOP_BY_QUIET * quiet_step(NOISE, TOLERANCE)


def sampled(f: Callable[[Floats], Floats]) -> Callable[[Indices, Floats], Samples]:
    return lambda which, steps: Samples(steps, f(steps))


def check_at_best_step(f: Callable[[Floats], Floats], slope: float) -> SlopeCheck:
    predicted = Predicted(sampled(f), np.array([slope]))
    (check,) = checks_at_best_step(predicted, np.array([TOP]), NOISE, TOLERANCE)
    return check


def check_at_step(f: Callable[[Floats], Floats], slope: float, step: float, noise: Noise = NOISE) -> SlopeCheck:
    (check,) = checks_at_step(Predicted(sampled(f), np.array([slope])), step, noise)
    return check


FUNCTIONS = {
    "smooth": lambda t: 1 + 2 * t + t**2 + 30 * t**3,
    "kinks at a distance": lambda t: 1 + 2 * t + np.maximum(t - 3e-10, 0) + np.maximum(-t - 5e-10, 0) / 3,
}


@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_right_slope_agrees_at_some_step(f: Callable[[Floats], Floats]) -> None:
    check = check_at_best_step(f, 2.0)
    assert check.agrees(TOLERANCE)
    assert check.threshold <= TOLERANCE


@pytest.mark.parametrize("error", [1e-4, -1e-2, 1.0, np.inf])
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_wrong_slope_agrees_at_none(f: Callable[[Floats], Floats], error: float) -> None:
    check = check_at_best_step(f, 2.0 + error)
    assert not check.agrees(TOLERANCE)
    assert not check_at_step(f, 2.0 + error, check.step).agrees(TOLERANCE)


def test_a_function_that_is_not_finite_agrees_with_nothing() -> None:
    assert not check_at_best_step(lambda t: np.full_like(t, np.nan), 2.0).agrees(TOLERANCE)


def test_a_step_that_crosses_kinks_is_not_taken_for_the_larger_ones_luck() -> None:
    """At one step two kinks cancel; the next larger step shows that they are there."""
    f = lambda t: 1 + 2 * t + np.maximum(t - TOP / 8, 0) - np.maximum(-t - TOP / 8, 0)  # noqa: E731
    check = check_at_best_step(f, 2.0)
    assert check.step < TOP / 8


def test_noise_as_large_as_the_slope_resolves_nothing() -> None:
    noisy = Noise(at_zero=1e6, sigma=1e-10, epsilon=EPS)
    check = check_at_step(lambda t: 1e6 + t, 2.0, 1e-10, noisy)
    assert check.agrees(TOLERANCE)
    assert check.threshold > TOLERANCE
