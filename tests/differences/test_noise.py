from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import POINTS, Noise, measured_noise, noise_of_stairs

T = np.arange(1, POINTS + 1) / POINTS

TRENDS: dict[str, Callable[[Floats], Floats]] = {
    "none": np.zeros_like,
    "constant": lambda t: np.full_like(t, 3.7),
    "linear": lambda t: 1 + 2 * t,
    "quadratic": lambda t: 1 - t + 5 * t**2,
    "cubic": lambda t: t**3 - 4 * t,
    "gentle sine": lambda t: np.sin(0.3 * t),
}


def noisy(trend: Callable[[Floats], Floats], sigma: float, seed: int) -> Floats:
    """`trend` on a millionth of its own scale, as close together as the check takes its points, and normal noise."""
    return trend(1e-6 * T) + sigma * np.random.default_rng(seed).standard_normal(POINTS)


@pytest.mark.slow_but_for(6)
@pytest.mark.parametrize("sigma", [1e-12, 1e-10, 1e-8], ids="sigma={:.0e}".format)
@pytest.mark.parametrize("trend", TRENDS)
def test_known_noise_on_a_trend_is_measured_within_a_factor(trend: str, sigma: float) -> None:
    measured = np.array([measured_noise(noisy(TRENDS[trend], sigma, seed)) for seed in range(200)])
    assert 0.7 * sigma < np.median(measured) < 1.4 * sigma
    assert measured.max() < 4 * sigma
    assert np.quantile(measured, 0.02) > sigma / 4


@pytest.mark.parametrize("trend", TRENDS)
def test_a_trend_alone_is_not_taken_for_noise(trend: str) -> None:
    values = TRENDS[trend](T)
    changes = np.ptp(values)
    assert measured_noise(values) <= 1e-4 * changes + 1e-15


@pytest.mark.parametrize("trend", ["quadratic", "cubic", "gentle sine"])
def test_noise_far_below_a_steep_trend_is_seen(trend: str) -> None:
    sigma = 1e-7
    measured = [
        measured_noise(TRENDS[trend](T) + sigma * np.random.default_rng(seed).standard_normal(POINTS))
        for seed in range(200)
    ]
    assert sigma / 2 < np.median(measured) < 2 * sigma


@pytest.mark.parametrize("quantum", [2.0**-52, 1e-8, 1e-3, 1.0], ids="quantum={:.0e}".format)
def test_values_rounded_to_a_quantum_have_about_its_rounding_error(quantum: float) -> None:
    """Rounding to multiples of q is noise of q/√12."""
    measured = []
    for seed in range(200):
        start, slope = np.random.default_rng(seed).uniform(0, 1, 2)
        measured.append(measured_noise(np.round(start + (3 + 10 * slope) * T) * quantum))
    sigma = quantum / np.sqrt(12)
    assert sigma / 3 < np.median(measured) < 3 * sigma
    assert max(measured) < 4 * sigma


def test_float32_values_have_the_noise_of_float32() -> None:
    values = np.sin(1 + 1e-4 * T).astype(np.float32).astype(np.float64)
    eps = float(np.finfo(np.float32).eps)
    assert eps / 20 < measured_noise(values) < 2 * eps


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5e12], ids=str)
def test_values_that_do_not_change_have_none(value: float) -> None:
    assert measured_noise(np.full(POINTS, value)) == 0.0


def test_one_flipped_bit_among_equal_values_is_seen() -> None:
    values = np.ones(POINTS)
    values[4] += 1e-15
    assert 1e-16 < measured_noise(values) < 1e-15


@pytest.mark.parametrize("count", [5, 7, 9, 20])
def test_any_number_of_points_from_five_on(count: int) -> None:
    sigma, rng = 1e-9, np.random.default_rng(3)
    measured = [measured_noise(1.0 + sigma * rng.standard_normal(count)) for _ in range(200)]
    assert sigma / 2 < np.median(measured) < 2 * sigma


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), exponent=st.floats(-100, 100), offset=st.floats(-10, 10))
def test_noise_scales_with_the_values_and_ignores_their_offset(seed: int, exponent: float, offset: float) -> None:
    values = np.random.default_rng(seed).standard_normal(POINTS)
    scale = 10.0**exponent
    assert measured_noise(scale * values) == pytest.approx(scale * measured_noise(values), rel=1e-9)
    assert measured_noise(values + offset) == pytest.approx(measured_noise(values), rel=1e-9)


@pytest.mark.parametrize(
    ("at_zero", "sigma", "expected"),
    [(0.0, 1e-16, 1e-16), (-8.0, 1e-16, 8e-16), (8.0, 1e-3, 1e-3)],
    ids=["measured", "rounding-of-the-value", "measured-is-larger"],
)
def test_the_noise_at_zero_is_no_less_than_rounding(at_zero: float, sigma: float, expected: float) -> None:
    assert Noise(at_zero, sigma, epsilon=2e-16).sigma_at_zero == pytest.approx(expected)


# Stairs -----------------------------------------------------------------------------------------------------------


def climbing(seed: int, units: int, smooth: Callable[[Floats], Floats]) -> Floats:
    """A sum of units rounded to stairs of 1e-7 with a smooth part, at points that are 1e-8 apart."""
    rng = np.random.default_rng(seed)
    slopes, offsets = rng.uniform(0.2, 2, (units, 1)), rng.uniform(0, 1, (units, 1))
    t = 1e-8 * np.arange(1, POINTS + 1)
    return smooth(t) + np.round((slopes * t / 1e-7) + offsets).sum(axis=0) * 1e-7 / units


@pytest.mark.parametrize("units", [20, 200])
@pytest.mark.parametrize("trend", TRENDS)
def test_the_height_of_stairs_is_measured(trend: str, units: int) -> None:
    """A sum of independent roundings of the height h has the standard deviation h / √12 · √units / units."""
    measured = [noise_of_stairs(climbing(seed, units, TRENDS[trend])) for seed in range(100)]
    assert np.mean(np.array(measured) > 0) > 0.75
    expected = 1e-7 / np.sqrt(12 * units)
    assert expected / 4 < np.median(measured) < 4 * expected


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 3e-8], ids="{:.0e}".format)
@pytest.mark.parametrize("f", [np.sin, np.exp, np.tanh, lambda t: 1 / (1 + t**2)], ids=["sin", "exp", "tanh", "bell"])
def test_a_smooth_function_climbs_no_stairs_however_steep(f: Callable[[Floats], Floats], scale: float) -> None:
    """What is left is the rounding of its values."""
    t = 1e-8 * np.arange(1, POINTS + 1) / scale
    assert noise_of_stairs(f(t + 0.3)) <= 1e-15
