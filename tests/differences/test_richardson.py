from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.differences.families import EPSILON, KNOWN, Family, Known, sigmoid
from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import (
    CENTRAL_POWERS,
    COARSE,
    FINE,
    Estimates,
    Ladder,
    Stencil,
    extrapolated,
    extrapolated_derivatives,
    stencil_for,
    through_stencil,
)

ONE = np.zeros(1, dtype=np.int64)
wide = settings(derandomize=True, deadline=None, max_examples=150)
every_known = pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)

Function = Callable[[Floats], Floats]


def climbed(f: Function, x: float = 0.0, precision: type = np.float64) -> Estimates:
    family = Family([f], [x], precision)
    return extrapolated_derivatives(family.sampler, ONE, family.unit, family.noise)


def scaled(c: float, f: Function) -> Function:
    return lambda v: c * f(v)


def slope_at(known: Known, x: float) -> float:
    return float(known.slope(np.array([x]))[0])


def covers(estimates: Estimates, slope: float) -> bool:
    """Whether the derivative is within the error bar, up to the rounding of its own formula."""
    return bool(abs(estimates.central[0] - slope) <= estimates.error_bar[0] + 8 * EPSILON * abs(slope))


# Smooth functions --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@wide
@given(
    known=st.sampled_from(KNOWN),
    place=st.floats(0, 1),
    sign=st.sampled_from([1.0, -1.0]),
    exponent=st.floats(-12, 12),
)
def test_the_error_bar_covers_the_error_at_every_scale(
    known: Known, place: float, sign: float, exponent: float
) -> None:
    low, high = known.arguments
    x = (sign if known.negative else 1.0) * 10 ** (low + place * (high - low))
    c = 10.0**exponent
    estimates = climbed(scaled(c, known.f), x)
    assert covers(estimates, c * slope_at(known, x))
    assert not estimates.kinked[0]


@pytest.mark.slow_but_for(60)
@pytest.mark.parametrize("c", [1e-12, 1e-4, 1.0, 1e6, 1e12], ids="times={:.0e}".format)
@pytest.mark.parametrize("x", [1e-6, 1e-3, 0.1, 0.7, 2.5], ids="x={:.0e}".format)
@every_known
def test_the_error_bar_is_small(known: Known, x: float, c: float) -> None:
    slope = c * slope_at(known, x)
    size = max(abs(slope), c * abs(float(known.f(np.array([x]))[0])))
    estimates = climbed(scaled(c, known.f), x)
    assert covers(estimates, slope)
    assert estimates.error_bar[0] <= 1e-5 * size


@pytest.mark.slow_but_for(2)
@every_known
def test_most_derivatives_are_known_to_nine_digits(known: Known) -> None:
    places = np.geomspace(0.01, 3, 40)
    sizes = [max(abs(slope_at(known, x)), abs(float(known.f(np.array([x]))[0]))) for x in places]
    bars = [climbed(known.f, x).error_bar[0] for x in places]
    assert np.quantile(np.array(bars) / sizes, 0.75) < 1e-9


@pytest.mark.slow
@wide
@given(
    one=st.sampled_from(KNOWN),
    other=st.sampled_from(KNOWN),
    x=st.floats(0.01, 2),
    c=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_products(one: Known, other: Known, x: float, c: float) -> None:
    """(f·g)' = f'·g + f·g'."""
    at = np.array([x])
    slope = float((c * (one.slope(at) * other.f(at) + one.f(at) * other.slope(at)))[0])
    estimates = climbed(lambda v: c * one.f(v) * other.f(v), x)
    cancelled = 8 * EPSILON * float(np.abs(c * one.slope(at) * other.f(at))[0])
    assert abs(estimates.central[0] - slope) <= estimates.error_bar[0] + cancelled


@pytest.mark.slow
@wide
@given(exponent=st.floats(-8, 0), place=st.floats(-3, 3))
@example(exponent=-8.0, place=0.75)
def test_a_small_natural_scale_is_found(exponent: float, place: float) -> None:
    """tanh(x/s) is flat a few s away from 0: larger steps see nothing of its slope, and agree with each other."""
    s = 10.0**exponent
    slope = 1 / s / np.cosh(place) ** 2
    estimates = climbed(lambda v: np.tanh(v / s), place * s)
    assert covers(estimates, slope)
    assert estimates.error_bar[0] <= 1e-4 * slope


@pytest.mark.parametrize("s", [1e-10, 1e-11, 1e-12, 1e-14], ids="s={:.0e}".format)
@pytest.mark.parametrize("place", [0.0, 0.3])
def test_a_scale_below_the_smallest_step_leaves_a_wide_error_bar(s: float, place: float) -> None:
    estimates = climbed(lambda v: np.tanh(v / s), place * s)
    assert estimates.error_bar[0] >= abs(estimates.central[0])


@pytest.mark.parametrize("x", [3.0, 10.0, 36.0, 40.0, 500.0], ids="x={:g}".format)
@pytest.mark.parametrize("f", [np.tanh, sigmoid], ids=["tanh", "sigmoid"])
def test_saturated(f: Function, x: float) -> None:
    slope = 4 * np.exp(-2 * x) / (1 + np.exp(-2 * x)) ** 2 if f is np.tanh else np.exp(-x) / (1 + np.exp(-x)) ** 2
    assert covers(climbed(f, x), slope)


@pytest.mark.parametrize("f", [np.log, np.sqrt], ids=["log", "sqrt"])
def test_steps_out_of_the_domain_are_left_out(f: Function) -> None:
    for x in (1e-8, 1e-6, 1e-2):
        slope = 1 / x if f is np.log else 0.5 / np.sqrt(x)
        estimates = climbed(f, x)
        assert covers(estimates, slope)
        assert estimates.error_bar[0] < 1e-3 * slope


@pytest.mark.parametrize("overflow", [np.inf, np.nan], ids=["inf", "nan"])
def test_values_that_are_not_finite_far_away_are_left_out(overflow: float) -> None:
    estimates = climbed(lambda v: np.where(np.abs(v) > 1e-3, overflow, np.sin(v + 1)))
    assert covers(estimates, np.cos(1.0))
    assert estimates.error_bar[0] < 1e-8


def test_a_function_that_is_finite_at_one_point_only_has_no_derivative() -> None:
    family = Family([lambda v: np.where(v == 0, 1.0, np.nan)], [0.0])
    estimates = extrapolated_derivatives(family.sampler, ONE, family.unit, Noise(1.0, 0.0, EPSILON))
    assert estimates.error_bar[0] == np.inf
    assert not estimates.kinked[0]
    assert estimates.half_width[0] == np.inf


def test_many_functions_at_once_are_each_what_they_are_alone() -> None:
    family = Family([np.sin, np.exp, np.abs], [0.3, 100.0, -1e-5])
    together = extrapolated_derivatives(family.sampler, np.array([0, 1, 2]), family.unit, family.noise)
    for i in range(3):
        alone = extrapolated_derivatives(family.sampler, np.array([i]), family.unit[i : i + 1], family.noise)
        assert (alone.central[0], alone.error_bar[0], alone.step[0]) == (
            together.central[i],
            together.error_bar[i],
            together.step[i],
        )


@pytest.mark.parametrize("ladder", [COARSE, FINE], ids=["coarse", "fine"])
def test_rungs_are_powers_of_two_from_one_down(ladder: Ladder) -> None:
    assert ladder.rungs[0] == 1.0
    assert ladder.smallest <= ladder.rungs[-1] < ladder.ratio * ladder.smallest
    assert np.all(np.frexp(ladder.rungs)[0] == 0.5)


@pytest.mark.slow_but_for(4)
@every_known
def test_the_fine_ladder_is_as_honest(known: Known) -> None:
    for x in np.geomspace(0.01, 2.5, 15):
        family = Family([known.f], [x])
        estimates = extrapolated_derivatives(family.sampler, ONE, family.unit, family.noise, FINE)
        assert covers(estimates, slope_at(known, x)), x
        assert not estimates.kinked[0]


# Corners -----------------------------------------------------------------------------------------------------------

DISTANCES = [10.0**-k for k in range(13)]


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e9], ids="size={:.0e}".format)
@pytest.mark.parametrize(
    ("f", "left", "right"),
    [
        (np.abs, -1.0, 1.0),
        (lambda v: np.maximum(v, 0), 0.0, 1.0),
        (lambda v: np.minimum(v, 0), 1.0, 0.0),
        (lambda v: np.where(v > 0, v, 0.01 * v), 0.01, 1.0),
        (lambda v: np.sin(v) + np.abs(np.tanh(v)), 0.0, 2.0),
    ],
    ids=["abs", "relu", "minus relu of minus", "leaky", "curved"],
)
def test_a_corner_at_the_point_has_two_slopes(f: Function, left: float, right: float, size: float) -> None:
    estimates = climbed(lambda v: size * (1 + f(v)))
    assert estimates.kinked[0]
    assert estimates.left[0] == pytest.approx(size * left, abs=1e-6 * size)
    assert estimates.right[0] == pytest.approx(size * right, abs=1e-6 * size)
    assert estimates.jump[0] == pytest.approx(size * (right - left), abs=1e-6 * size)
    assert estimates.half_width[0] == pytest.approx(size * abs(right - left) / 2, rel=1e-5)


@pytest.mark.parametrize("side", [1.0, -1.0], ids=["right", "left"])
@pytest.mark.parametrize("distance", DISTANCES, ids="{:.0e}".format)
def test_a_corner_at_a_distance(distance: float, side: float) -> None:
    """Resolved down to 1e-9; closer to θ than any useful step, both slopes are seen, and that is said."""
    slope = 1 / np.cosh(0.3) ** 2 - 2 * side
    estimates = climbed(lambda v: np.tanh(v + 0.3) + 2 * np.abs(v - side * distance))
    if distance >= 1e-9:
        assert not estimates.kinked[0]
        assert covers(estimates, slope)
        assert estimates.error_bar[0] <= 1e-9 + 4e-14 / distance
    else:
        bar = estimates.error_bar[0] + estimates.jump_error_bar[0]
        assert estimates.kinked[0]
        low, high = sorted([estimates.left[0], estimates.right[0]])
        assert low - bar <= slope <= high + bar


@pytest.mark.slow
@wide
@given(exponents=st.lists(st.floats(-9, 0), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_the_error_bar_covers_the_error_among_many_corners(exponents: list[float], seed: int) -> None:
    """A ReLU network as one weight sees it: smooth at θ, kinks at all distances on both sides."""
    rng = np.random.default_rng(seed)
    places = np.array([10.0**e for e in exponents]) * rng.choice([-1, 1], len(exponents))
    weights = rng.uniform(-2, 2, len(exponents))
    kinks = list(zip(weights, places, strict=True))

    def f(v: Floats) -> Floats:
        return np.sin(v + 0.5) + sum(w * np.maximum(v - p, 0) for w, p in kinks)

    assert covers(climbed(f), float(np.cos(0.5) + weights[places < 0].sum()))


@pytest.mark.slow
@wide
@given(exponent=st.floats(-9, 0), size=st.floats(-6, 3), side=st.sampled_from([1.0, -1.0]))
def test_a_step_at_a_distance_is_not_taken_for_a_slope(exponent: float, size: float, side: float) -> None:
    estimates = climbed(lambda v: np.sin(v + 0.3) + 10.0**size * (v > side * 10.0**exponent))
    assert covers(estimates, np.cos(0.3))


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e6], ids="size={:.0e}".format)
@pytest.mark.parametrize("distance", [0.0, 1e-11, 1e-12])
def test_a_step_at_the_point_has_no_derivative(distance: float, size: float) -> None:
    estimates = climbed(lambda v: np.sin(v + 0.3) + size * (v > distance))
    assert estimates.error_bar[0] > 1e8 * size
    assert estimates.error_bar[0] > abs(estimates.central[0])


# Noise and low precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1e-13, 1e-10, 1e-7, 1e-4, 1e-1], ids="sigma={:.0e}".format)
def test_noise_widens_the_error_bar_and_no_more(sigma: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        estimates = climbed(lambda v, rng=rng: np.sin(v) + sigma * rng.standard_normal(v.shape), 0.4)
        assert covers(estimates, np.cos(0.4))
        assert not estimates.kinked[0]
        assert estimates.error_bar[0] >= sigma


@pytest.mark.parametrize("sigma", [1e-13, 1e-10, 1e-7], ids="sigma={:.0e}".format)
def test_noise_leaves_what_it_must(sigma: float) -> None:
    bars = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        bars.append(climbed(lambda v, rng=rng: np.sin(v) + sigma * rng.standard_normal(v.shape), 0.4).error_bar[0])
    assert np.median(bars) <= 30 * sigma ** (2 / 3), "the best step of a plain centered difference"


@pytest.mark.parametrize("x", [1e-3, 0.3, 0.7, 3.0], ids="x={:g}".format)
@every_known
def test_functions_rounded_to_float32(known: Known, x: float) -> None:
    estimates = climbed(known.f, x, np.float32)
    assert covers(estimates, slope_at(known, float(np.float32(x))))
    assert not estimates.kinked[0]


@pytest.mark.parametrize("x", [0.3, 0.7, 3.0], ids="x={:g}".format)
@every_known
def test_values_rounded_to_float32_at_an_exact_argument(known: Known, x: float) -> None:
    """A model of which a part stays in a lower precision: all its small steps give nothing, or one quantum."""
    estimates = climbed(lambda v: known.f(v).astype(np.float32).astype(np.float64), x)
    assert covers(estimates, slope_at(known, x))


def test_a_constant_has_slope_zero() -> None:
    for value in (0.0, 1.0, -1e8):
        estimates = climbed(lambda v, value=value: np.full_like(v, value))
        assert estimates.central[0] == 0.0
        assert estimates.error_bar[0] <= 1e-13 * max(1.0, abs(value))
        assert not estimates.kinked[0]


# Windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "error_bar"), [(0, 0.2), (1, 2e-4), (2, 1e-9)], ids=["plain", "once", "twice"])
def test_each_order_removes_a_power_of_the_step(order: int, error_bar: float) -> None:
    family = Family([np.exp], [0.0])
    step = 0.8 * 8.0**-order  # the largest of the rungs is 0.8
    value, roundoff, *_ = through_stencil(family.sampler, ONE, family.unit, Stencil(step, order), family.noise)
    assert roundoff[0] < abs(value[0] - 1) < error_bar
    assert error_bar / 100 < abs(value[0] - 1)


def test_the_plain_window_is_the_lectures_formula() -> None:
    family = Family([np.sin], [0.25])
    eps = 2.0**-20
    value, roundoff, *_ = through_stencil(family.sampler, ONE, family.unit, Stencil(eps, 0), Noise(0.0, 1e-16, EPSILON))
    assert value[0] == (np.sin(0.25 + eps) - np.sin(0.25 - eps)) / (2 * eps)
    assert roundoff[0] == pytest.approx(6 * np.sqrt(2) * 1e-16 / (2 * eps), rel=1)


def test_steps_are_those_really_taken() -> None:
    """At θ = 1e6 float32 holds a step of 0.1 as 0.125; divided by 0.1, the slope would be off by a quarter."""
    family = Family([lambda v: 3 * v.astype(np.float64) - 3e6], [1e6], np.float32)
    value, *_ = through_stencil(family.sampler, ONE, np.ones(1), Stencil(0.1, 0), family.noise)
    assert value[0] == 3.0


def test_a_step_that_moves_nothing_gives_no_number() -> None:
    family = Family([np.sin], [1e6])
    value, roundoff, *_ = through_stencil(family.sampler, ONE, np.ones(1), Stencil(1e-12, 0), family.noise)
    assert np.isnan(value[0])
    assert np.isnan(roundoff[0])


@pytest.mark.parametrize("needed", [1e-4, 1e-7, 1e-9], ids="needed={:.0e}".format)
def test_the_cheapest_window_that_is_good_enough(needed: float) -> None:
    family = Family([np.exp] * 5, np.linspace(0.1, 1, 5))
    everything = np.arange(5)
    tableau = extrapolated_derivatives(family.sampler, everything, family.unit, family.noise).tableau
    stencil, typical = stencil_for(tableau, needed)
    assert typical <= needed
    value, *_ = through_stencil(family.sampler, everything, family.unit, stencil, family.noise)
    assert np.abs(value - np.exp(family.x)).max() <= 4 * needed
    cheaper = tableau.expected[: stencil.order]
    assert not (np.median(cheaper, axis=1) <= needed).any()


def test_where_none_is_good_enough_the_best_window() -> None:
    family = Family([np.exp], [0.5])
    tableau = extrapolated_derivatives(family.sampler, ONE, family.unit, family.noise).tableau
    stencil, typical = stencil_for(tableau, 1e-30)
    assert typical == np.median(tableau.expected, axis=1).min()
    assert stencil.step in COARSE.rungs


@pytest.mark.parametrize("ladder", [COARSE, FINE], ids=["coarse", "fine"])
@pytest.mark.parametrize("power", CENTRAL_POWERS)
def test_extrapolation_is_exact_on_the_powers_it_removes(power: int, ladder: Ladder) -> None:
    steps = ladder.rungs[:8]
    slopes = 5.0 + 0.7 * steps[None, :] ** power
    tableau = extrapolated(slopes, np.full_like(slopes, 1e-15), CENTRAL_POWERS, ladder.ratio)
    order = CENTRAL_POWERS.index(power) + 1
    assert tableau.values[order, 0, order:] == pytest.approx(np.full(8 - order, 5.0), rel=1e-14)


@pytest.mark.slow
@wide
@given(seed=st.integers(0, 10**6), exponent=st.floats(-200, 200))
def test_everything_scales_with_f(seed: int, exponent: float) -> None:
    """Nothing absolute is hidden in the core: 1e-200·f is judged as f is."""
    rng = np.random.default_rng(seed)
    a, b, factor = rng.uniform(0.5, 2), rng.uniform(0, 1), 2.0 ** round(exponent)
    one, other = climbed(lambda v: np.sin(a * v + b)), climbed(lambda v: factor * np.sin(a * v + b))
    assert other.central[0] == factor * one.central[0]
    assert other.error_bar[0] == factor * one.error_bar[0]
    assert other.kinked[0] == one.kinked[0]
