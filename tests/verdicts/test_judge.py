from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.differences.families import EPSILON, KNOWN, Family
from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.verdicts.entry_check import EntryResults, Outcome
from torch_gradcheck.verdicts.judge import judge_gradient

wide = settings(derandomize=True, deadline=None, max_examples=50)
seeds = st.integers(0, 10**6)
loss_scales = st.floats(-12, 12)

N = 200

SMOOTH = [known for known in KNOWN if known.id != "constant"]


class Right:
    """A random J(θ) = c·Σ w_i·g_i(θ_i) of known functions, with its right gradient."""

    def __init__(self, seed: int, exponent: float = 0.0, most: int = 12) -> None:
        rng = np.random.default_rng(seed)
        chosen = [SMOOTH[i] for i in rng.integers(len(SMOOTH), size=rng.integers(1, most + 1))]
        signs = [rng.choice([-1.0, 1.0]) if known.negative else 1.0 for known in chosen]
        x = rng.uniform(0.3, 2, len(chosen)) * signs
        weights = 10.0**exponent * rng.uniform(0.3, 3, len(chosen))
        self.family = Family([_times(w, known.f) for w, known in zip(weights, chosen, strict=True)], x)
        slopes = [known.slope(x[i : i + 1])[0] for i, known in enumerate(chosen)]
        self.gradient: Floats = weights * np.array(slopes)

    def trial(self, gradient: Floats, **options: float) -> EntryResults:
        return judge_gradient(self.family.check(gradient, **options), None)


def _times(weight: float, f: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    return lambda v: weight * f(v)


NAMES = {int(getattr(Outcome, name)): name for name in ("MATCH", "KINK", "UNDECIDED", "MISMATCH")}


def outcomes(results: EntryResults) -> list[str]:
    return [NAMES[int(outcome)] for outcome in results.outcome]


def trial(
    functions: list[Callable[[Floats], Floats]], x: list[float], gradient: list[float], **options: float
) -> EntryResults:
    return judge_gradient(Family(functions, x).check(np.array(gradient), **options), None)


def network(width: int, seed: int = 0) -> tuple[Family, Floats]:
    """A smooth J in which every coordinate matters about equally."""
    rng = np.random.default_rng(seed)
    x, frequency, phase = rng.normal(0, 0.3, width), rng.uniform(0.5, 2, width), rng.uniform(0, 0.8, width)

    def wave(i: int) -> Callable[[Floats], Floats]:
        return lambda v: np.sin(frequency[i] * v + phase[i]) / width

    return Family([wave(i) for i in range(width)], x), frequency * np.cos(frequency * x + phase) / width


# Right and wrong gradients of smooth functions ---------------------------------------------------------------------


@wide
@given(seed=seeds, exponent=loss_scales)
def test_a_right_gradient_matches(seed: int, exponent: float) -> None:
    right = Right(seed, exponent)
    results = right.trial(right.gradient)
    assert set(outcomes(results)) == {"MATCH"}
    covered = np.abs(results.numeric - right.gradient) <= results.error_bar + 1e-5 * np.abs(right.gradient)
    assert covered.all()


@pytest.mark.slow
@wide
@given(seed=seeds, exponent=loss_scales, place=st.floats(0, 1, exclude_max=True), off=st.sampled_from([0.99, 1.01]))
def test_one_entry_off_by_a_hundredth_is_found_and_no_other(
    seed: int, exponent: float, place: float, off: float
) -> None:
    right = Right(seed, exponent)
    noise_of_all = right.trial(right.gradient).error_bar
    visible = np.flatnonzero(noise_of_all < 1e-4 * np.abs(right.gradient))
    if not len(visible):
        return
    entry = visible[int(place * len(visible))]
    wrong = right.gradient.copy()
    wrong[entry] *= off
    found = np.flatnonzero(right.trial(wrong).outcome == Outcome.MISMATCH)
    assert found.tolist() == [entry]


@pytest.mark.slow
@wide
@given(seed=seeds, exponent=loss_scales, off=st.sampled_from([1 + 1e-4, 1 - 1e-4, 1.01, 2.0, 0.5, -1.0, 0.0]))
def test_a_whole_gradient_that_is_wrong_is_found(seed: int, exponent: float, off: float) -> None:
    right = Right(seed, exponent)
    assert "MISMATCH" in outcomes(right.trial(off * right.gradient))


@pytest.mark.parametrize("off", [1e-7, 1e-6, 4e-6])
def test_less_than_the_tolerance_is_no_mistake(off: float) -> None:
    family, gradient = network(20)
    assert set(outcomes(judge_gradient(family.check((1 + off) * gradient), None))) == {"MATCH"}


@pytest.mark.parametrize("tolerance", [1e-6, 1e-5, 1e-3, 0.1], ids="{:.0e}".format)
def test_the_tolerance_is_where_matches_end(tolerance: float) -> None:
    """|a − n| ≤ tolerance·(|a| + |n|): a factor of 1 + 2·tolerance is the edge."""
    family, gradient = network(5)
    for factor, expected in ((1.7, "MATCH"), (2.3 if tolerance < 0.01 else 3.0, "MISMATCH")):
        results = judge_gradient(family.check((1 + factor * tolerance) * gradient, tolerance=tolerance), None)
        assert set(outcomes(results)) == {expected}, factor


def test_a_wrong_entry_among_much_larger_ones_is_found() -> None:
    """Ng's ratio over the vector is 1e-9: it says `great`."""
    family = Family([np.sin, lambda v: 1e7 * v, lambda v: 1e7 * np.sin(v)], [0.4, 0.2, 0.1])
    gradient = np.array([np.cos(0.4) * 1.5, 1e7, 1e7 * np.cos(0.1)])
    assert outcomes(judge_gradient(family.check(gradient), None)) == ["MISMATCH", "MATCH", "MATCH"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("flat", [False, True], ids=["moves J", "does not move J"])
def test_an_entry_that_is_not_finite_is_a_mismatch_and_spoils_no_other(flat: bool, value: float) -> None:
    family, gradient = network(12)
    if flat:
        family.functions[3] = np.zeros_like
    gradient[3] = value
    results = judge_gradient(family.check(gradient), None)
    assert outcomes(results) == ["MATCH"] * 3 + ["MISMATCH"] + ["MATCH"] * 8


def test_nothing_but_nan() -> None:
    family, gradient = network(100)
    results = judge_gradient(family.check(np.full(100, np.nan)), None)
    assert set(outcomes(results)) == {"MISMATCH"}
    assert results.numeric == pytest.approx(gradient, rel=1e-4)


def test_a_gradient_without_entries() -> None:
    family = Family([], [])
    results = judge_gradient(family.check(np.zeros(0)), None)
    assert len(results.outcome) == 0


def test_zero_is_right_where_the_loss_does_not_move() -> None:
    functions = [np.ones_like, np.zeros_like, lambda v: 0 * v]
    results = trial([*functions, np.sin], [0.5, 0.0, -3.0, 0.2], [0, 0, 0, np.cos(0.2)])
    assert set(outcomes(results)) == {"MATCH"}


def test_not_zero_is_wrong_where_the_loss_does_not_move() -> None:
    results = trial([np.ones_like, np.sin], [0.5, 0.2], [1e-3, np.cos(0.2)])
    assert outcomes(results) == ["MISMATCH", "MATCH"]


def test_a_gradient_known_in_float16_may_be_off_by_its_rounding() -> None:
    family, gradient = network(20)
    check = family.check(gradient.astype(np.float16).astype(np.float64))
    assert "MISMATCH" in outcomes(judge_gradient(check, None))
    lenient = replace(check, analytic_epsilon=float(np.finfo(np.float16).eps))
    assert set(outcomes(judge_gradient(lenient, None))) == {"MATCH"}


# Small scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.3, 30.0], ids=["on the slope", "saturated"])
@pytest.mark.parametrize("exponent", range(-15, 0))
def test_a_right_gradient_is_no_mismatch_however_small_the_natural_scale(exponent: int, place: float) -> None:
    """tanh(x/s): within the reach of the steps it is judged, below it undecided, and never a mismatch."""
    s = 10.0**exponent
    results = trial([lambda v: np.tanh(v / s)], [place * s], [1 / s / np.cosh(place) ** 2])
    assert outcomes(results) == ["MATCH"] if exponent >= -8 else outcomes(results) != ["MISMATCH"]


@pytest.mark.parametrize("place", [0.0, 0.3, 30.0], ids=["at 0", "on the slope", "saturated"])
@pytest.mark.parametrize("exponent", range(-11, 0))
def test_nor_beside_an_entry_of_ordinary_scale(exponent: int, place: float) -> None:
    s = 10.0**exponent
    results = trial([lambda v: np.tanh(v / s), np.sin], [place * s, 0.3], [1 / s / np.cosh(place) ** 2, np.cos(0.3)])
    assert outcomes(results) == ["MATCH", "MATCH"] if exponent >= -8 else "MISMATCH" not in outcomes(results)


@pytest.mark.slow_but_for(9)
@pytest.mark.parametrize("exponent", range(-7, 0))
@pytest.mark.parametrize("off", [1.01, 2.0, -1.0, 0.0])
def test_a_wrong_gradient_on_a_small_natural_scale_is_found(off: float, exponent: int) -> None:
    s = 10.0**exponent
    slope = 1 / s / np.cosh(0.3) ** 2
    results = trial(
        [lambda v: np.tanh(v / s), lambda v: np.sin(v / s)], [0.3 * s, 0.2 * s], [off * slope, np.cos(0.2) / s]
    )
    assert outcomes(results) == ["MISMATCH", "MATCH"]


@pytest.mark.slow
@wide
@given(seed=seeds)
def test_scales_mixed_in_one_tensor(seed: int) -> None:
    """sin(θ_i/s_i) with s_i from 1e-6 to 1e4, where every entry matters."""
    rng = np.random.default_rng(seed)
    s = 10.0 ** rng.uniform(-6, 4, 12)
    x = s * rng.uniform(-1, 1, 12)
    gradient = np.cos(x / s) / s
    family = Family([lambda v, scale=scale: np.sin(v / scale) for scale in s], x)
    results = judge_gradient(family.check(gradient), None)
    assert set(outcomes(results)) == {"MATCH"}
    steep = int(np.argmax(np.abs(gradient)))
    gradient[steep] *= 1.01
    assert outcomes(judge_gradient(family.check(gradient), None))[steep] == "MISMATCH"


# Corners and jumps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        (-1.0, "KINK"),
        (1.0, "KINK"),
        (0.999, "KINK"),
        (0.3, "KINK"),
        (0.0, "MATCH"),  # what a centered difference gives
        (1.001, "MISMATCH"),
        (-1.2, "MISMATCH"),
        (100.0, "MISMATCH"),
    ],
)
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6], ids="size={:.0e}".format)
def test_at_a_corner(gradient: float, expected: str, size: float) -> None:
    functions = [lambda v: size * np.abs(v), lambda v: size * np.sin(v + 0.3)]
    results = trial(functions, [0.0, 0.0], [size * gradient, size * np.cos(0.3)])
    assert outcomes(results) == [expected, "MATCH"]
    assert (results.left[0], results.right[0]) == pytest.approx((-size, size), rel=1e-6) or expected == "MATCH"


def test_the_numeric_side_of_a_kink_is_the_slope_nearest_to_the_gradient() -> None:
    results = trial([lambda v: np.maximum(v, 0) + np.sin(v + 1)], [0.0], [np.cos(1)])
    assert outcomes(results) == ["KINK"]
    assert results.numeric[0] == pytest.approx(np.cos(1), rel=1e-6)


@pytest.mark.parametrize("exponent", range(-9, 0))
@pytest.mark.parametrize("side", [1.0, -1.0], ids=["right", "left"])
def test_corners_close_by_are_stepped_over(side: float, exponent: int) -> None:
    right = 1 if side < 0 else -1
    functions = [lambda v: np.abs(v - side * 10.0**exponent), np.sin]
    assert outcomes(trial(functions, [0.0, 0.4], [right, np.cos(0.4)])) == ["MATCH", "MATCH"]
    assert outcomes(trial(functions, [0.0, 0.4], [1.01 * right, np.cos(0.4)])) == ["MISMATCH", "MATCH"]


@pytest.mark.parametrize("exponent", range(-15, -9))
def test_a_kink_closer_than_any_step_is_no_mismatch(exponent: int) -> None:
    for side in (1, -1):
        results = trial(
            [lambda v, side=side: np.abs(v - side * 10.0**exponent), np.sin], [0.0, 0.4], [-side, np.cos(0.4)]
        )
        assert outcomes(results)[0] in ("KINK", "UNDECIDED", "MATCH")
        assert outcomes(results)[1] == "MATCH"


@pytest.mark.slow
@wide
@given(seed=seeds)
def test_many_corners_at_all_distances(seed: int) -> None:
    """What one weight of a ReLU network sees, for several weights."""
    rng = np.random.default_rng(seed)
    functions, gradient = [], []
    for _ in range(8):
        places = 10.0 ** rng.uniform(-8, 0, 6) * rng.choice([-1, 1], 6)
        weights = rng.uniform(-2, 2, 6)

        def f(v: Floats, places: Floats = places, weights: Floats = weights) -> Floats:
            return np.sin(v + 0.5) + (weights * np.maximum(v[:, None] - places, 0)).sum(axis=1)

        functions.append(f)
        gradient.append(np.cos(0.5) + weights[places < 0].sum())
    right = np.array(gradient)
    assert set(outcomes(trial(functions, [0.0] * 8, gradient))) == {"MATCH"}
    entry = int(np.argmax(np.abs(right)))
    right[entry] *= 1.01
    found = outcomes(trial(functions, [0.0] * 8, list(right)))
    assert found[entry] == "MISMATCH"
    assert found.count("MISMATCH") == 1


@pytest.mark.parametrize("distance", [0.0, 1e-11], ids=["at the point", "next to it"])
@pytest.mark.parametrize("size", [1e-6, 1.0], ids="size={:.0e}".format)
def test_a_jump_is_no_mismatch(size: float, distance: float) -> None:
    functions = [lambda v: np.sin(v + 0.3) + size * (v > distance), np.sin]
    results = trial(functions, [0.0, 0.4], [np.cos(0.3), np.cos(0.4)])
    assert outcomes(results)[0] in ("UNDECIDED", "MATCH")
    assert outcomes(results)[1] == "MATCH"


@pytest.mark.parametrize("exponent", range(-9, 0))
def test_a_jump_at_a_distance_is_stepped_over(exponent: int) -> None:
    functions = [lambda v: np.sin(v + 0.3) + (v > 10.0**exponent), np.sin]
    assert outcomes(trial(functions, [0.0, 0.4], [np.cos(0.3), np.cos(0.4)])) == ["MATCH", "MATCH"]
    assert outcomes(trial(functions, [0.0, 0.4], [1.01 * np.cos(0.3), np.cos(0.4)])) == ["MISMATCH", "MATCH"]


class SeveralUnitsAtZero(Family):
    """1 + Σ_k a_k·relu(w_k·x): both coordinates move all units, which lie at 0."""

    A, W = np.array([1.0, -2.0, 0.7]), np.array([[1.0, 0.4], [-0.6, 1.0], [0.3, -1.0]])

    def __init__(self) -> None:
        super().__init__([lambda v: v, lambda v: v], [0.0, 0.0])

    def total(self, parts: Floats) -> float:
        return float(1.0 + self.A @ np.maximum(self.W @ parts, 0))


@pytest.mark.parametrize("pattern", [(1, 0, 1), (0, 1, 0), (1, 1, 0), (0, 0, 1), (0, 0, 0)], ids=str)
def test_a_choice_of_slope_in_each_of_several_units_is_excused(pattern: tuple[int, int, int]) -> None:
    """Autograd takes the slope 0 in each unit at 0: neither between the slopes of a coordinate, nor that of a piece."""
    family = SeveralUnitsAtZero()
    gradient = (family.A * pattern) @ family.W
    assert "MISMATCH" not in outcomes(judge_gradient(family.check(gradient), None))


def test_a_gradient_that_no_choice_gives_is_not_excused() -> None:
    family = SeveralUnitsAtZero()
    results = judge_gradient(family.check(np.array([50.0, 50.0])), None)
    assert outcomes(results) == ["MISMATCH", "MISMATCH"]


@pytest.mark.parametrize("width", [1e-12, 1e-14, 1e-20], ids="width={:.0e}".format)
def test_a_rise_between_the_smallest_steps_is_no_mismatch(width: float) -> None:
    """As x/|x| and norms of a row of zeros rise: the slope at 0 is right, and no step sees it."""
    results = trial([lambda v: np.tanh(v / width), np.sin], [0.0, 0.4], [1 / width, np.cos(0.4)])
    assert outcomes(results)[0] in ("MATCH", "UNDECIDED")
    assert outcomes(trial([np.sin, np.sin], [0.1, 0.4], [1e9, np.cos(0.4)])) == ["MISMATCH", "MATCH"]


@pytest.mark.parametrize(("precision", "error_bar"), [(np.float16, 3e-2), (np.float32, 3e-5)], ids=["half", "single"])
def test_a_gradient_in_a_lower_precision_is_rounded_and_no_more(precision: type, error_bar: float) -> None:
    family, gradient = network(10)
    check = replace(family.check(gradient.astype(precision)), analytic_epsilon=float(np.finfo(precision).eps))
    assert set(outcomes(judge_gradient(check, None))) == {"MATCH"}
    wrong = replace(check, analytic=((1 + error_bar) * gradient).astype(precision).astype(np.float64))
    assert "MISMATCH" in outcomes(judge_gradient(wrong, None))


# Steps that are given, and noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1e-7], ids="eps={:.0e}".format)
def test_a_given_step_is_used_as_it_is(eps: float) -> None:
    """A disagreement is still looked at on the ladder."""
    family, gradient = network(10)
    results = judge_gradient(family.check(gradient, eps=eps), None)
    assert results.stencil == Stencil(eps, 0)
    assert set(outcomes(results)) == {"MATCH"}
    results = judge_gradient(family.check(1.01 * gradient, eps=eps), None)
    assert results.stencil == Stencil(eps, 0)
    assert set(outcomes(results)) == {"MISMATCH"}


@pytest.mark.parametrize("x", [0.25, 4.0])
def test_a_given_step_gives_the_plain_formula_where_it_agrees(x: float) -> None:
    family = Family([np.exp], [x])
    eps = 2.0**-10
    results = judge_gradient(family.check(np.exp([x]), eps=eps, tolerance=1e-3), None)
    assert results.numeric[0] == (np.exp(x + eps) - np.exp(x - eps)) / (2 * eps)


@pytest.mark.parametrize("eps", [1e-15, 1e-30, 1.0, 1e3], ids="eps={:.0e}".format)
def test_an_absurd_step_makes_no_mismatch(eps: float) -> None:
    family, gradient = network(10)
    assert "MISMATCH" not in outcomes(judge_gradient(family.check(gradient, eps=eps), None))


class Noisy(Family):
    """J with random noise of a known σ."""

    def __init__(self, family: Family, sigma: float, seed: int = 0) -> None:
        super().__init__(family.functions, family.x)
        self.sigma, self.rng = sigma, np.random.default_rng(seed)

    def total(self, parts: Floats) -> float:
        return super().total(parts) + self.sigma * float(self.rng.standard_normal())


@pytest.mark.parametrize("sigma", [1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1.0], ids="sigma={:.0e}".format)
def test_noise_makes_no_mismatch(sigma: float) -> None:
    for seed in range(5):
        family, gradient = network(20, seed)
        noisy = Noisy(family, sigma, seed)
        assert "MISMATCH" not in outcomes(judge_gradient(noisy.check(gradient), None))


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("sigma", [1e-15, 1e-12, 1e-9, 1e-6], ids="sigma={:.0e}".format)
def test_a_factor_of_two_is_found_in_noise(sigma: float) -> None:
    for seed in range(5):
        family, gradient = network(20, seed)
        noisy = Noisy(family, sigma, seed)
        assert "MISMATCH" in outcomes(judge_gradient(noisy.check(2 * gradient), None))


def test_noise_that_is_too_large_is_not_hidden() -> None:
    """A gradient off by a hundredth in noise that hides as much: the error bars cover it, and nothing is a mismatch."""
    family, gradient = network(20)
    results = judge_gradient(Noisy(family, 1e-3).check(1.01 * gradient), None)
    assert "MISMATCH" not in outcomes(results)
    assert (results.error_bar > 0.01 * np.abs(gradient)).all()


def test_a_derivative_that_no_two_steps_agree_on_is_not_judged() -> None:
    """√|t|·sin(1/t) swings ever faster and steeper on the way to 0."""
    functions = [lambda v: np.sin(1 / np.where(v == 0, 1, v)) * np.sqrt(np.abs(v)), np.sin]
    results = trial(functions, [0.0, 0.4], [7.0, np.cos(0.4)])
    assert outcomes(results)[0] == "UNDECIDED" or results.error_bar[0] > 100
    assert outcomes(results)[1] == "MATCH"


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("x", [0.3, 0.7, 2.0])
def test_a_loss_in_float32(x: float) -> None:
    for known in SMOOTH:
        family = Family([known.f, np.sin], [x, 0.4], np.float32)
        at = family.x.astype(np.float64)
        gradient = np.array([known.slope(at[:1])[0], np.cos(at[1])])
        assert set(outcomes(judge_gradient(family.check(gradient), None))) <= {"MATCH", "UNDECIDED"}, known.id
        visible = abs(gradient[0]) > 1e-2 * abs(float(known.f(at[:1])[0]))
        found = outcomes(judge_gradient(family.check(gradient * [2, 1]), None))
        assert not visible or found[0] == "MISMATCH", known.id


def test_a_part_of_the_loss_in_float32_with_its_noise_known() -> None:
    """Plateaus at small steps agree on a slope of 0; only their noise keeps that from being a mismatch."""
    for x in np.linspace(0.2, 2, 10):
        family = Family([lambda v: np.sin(v) + np.exp(v).astype(np.float32).astype(np.float64)], [x])
        quantum = float(np.spacing(np.float32(np.exp(x))))
        noise = Noise(family.J(family.x), quantum / np.sqrt(12), EPSILON)
        for factor, allowed in ((1.0, {"MATCH", "UNDECIDED"}), (2.0, {"MISMATCH"})):
            check = family.check(factor * np.array([np.cos(x) + np.exp(x)]))
            results = judge_gradient(replace(check, noise=noise), None)
            assert set(outcomes(results)) <= allowed, (x, factor)


@pytest.mark.parametrize(
    ("at_zero", "sigma", "step"),
    [
        (1.0, 1e-16, 4e-6),
        (2.3, 2.2e-16, 5e-6),
        (1e-12, 1e-28, 4e-6),
        (1e6, 1e-10, 5e-6),
        (1.0, 1e-3, 6e-5),
        (0.0, 0.0, 4e-6),
    ],
    ids=["unit", "two", "tiny", "huge", "noisy", "zero"],
)
def test_the_first_step_balances_roundoff_and_truncation(at_zero: float, sigma: float, step: float) -> None:
    assert step / 2 < first_step(Noise(at_zero, sigma, EPSILON)) < 2 * step


# Two ways to evaluate f --------------------------------------------------------------------------------------------

APART = 1e-3
"""How far apart two ways to evaluate f are here, much more than its noise: mixing them shows."""


class InTwoWays:
    """J as one engine evaluates it and, plainly, as another does; remembers what it was asked for."""

    def __init__(self, family: Family, gradient: Floats) -> None:
        self.family, self.asked = family, list[str]()
        self.check = replace(family.check(gradient), sampler=self.sampler, at_zero=self.at_zero)

    def sampler(self, which: Indices, steps: Floats) -> Samples:
        self.asked.append("samples")
        taken, values = self.family.sampler(which, steps)
        return Samples(taken, values + APART)

    def at_zero(self) -> float:
        self.asked.append("zero")
        return self.family.J(self.family.x) + APART


@pytest.mark.parametrize("size", [20, N], ids="size={}".format)
def test_values_are_compared_with_the_value_at_zero_of_the_same_engine(size: int) -> None:
    family, gradient = network(size)
    right, wrong = InTwoWays(family, gradient), InTwoWays(family, 2 * gradient)
    assert set(outcomes(judge_gradient(right.check, None))) == {"MATCH"}
    assert "zero" not in right.asked, "only the ladder needs it"
    results = judge_gradient(wrong.check, None)
    assert set(outcomes(results)) == {"MISMATCH"}  # a kink, or anything, if the two slopes were APART / step apart
    refined = np.isfinite(results.left)
    np.testing.assert_allclose(results.left[refined], results.right[refined], rtol=1e-3)
    assert wrong.asked[0] == "samples"
    assert "zero" in wrong.asked


# Cost --------------------------------------------------------------------------------------------------------------

EXTRA = 9 * 2 * (1 + 13)
"""Evaluations of nine entries: two each at the first step, and two at each of 13 rungs of the ladder."""


def cost(family: Family, gradient: Floats) -> int:
    check = family.check(gradient)
    family.evaluations = 0
    judge_gradient(check, None)
    return family.evaluations


def test_a_right_gradient_costs_two_evaluations_a_coordinate() -> None:
    family, gradient = network(N)
    assert 2 * N <= cost(family, gradient) <= 2 * N + EXTRA


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("off", [2.0, 1.001, 0.0, -1.0])
def test_a_wrong_gradient_costs_a_few_times_a_right_one(off: float) -> None:
    width = 1000
    family, gradient = network(width)
    assert cost(family, off * gradient) <= 8 * cost(family, gradient)


def test_one_wrong_entry_costs_little_more() -> None:
    family, gradient = network(N)
    right = cost(family, gradient)
    gradient[17] *= 1.01
    assert cost(family, gradient) <= right + 600


def test_a_carried_window_is_used_where_the_first_step_drowns() -> None:
    """Gradients of 1e-9 beside a loss of 1: roundoff at 1e-5 is 1e-2 of them."""
    functions = [np.ones_like, *[lambda v: 1e-9 * np.sin(v)] * 20]
    family = Family(functions, [0.5] + [0.3] * 20)
    gradient = np.concatenate([[0.0], np.full(20, 1e-9 * np.cos(0.3))])
    alone = judge_gradient(family.check(gradient), None)
    assert alone.stencil.step > 1e-4
    family.evaluations = 0
    previous_stencil = judge_gradient(family.check(gradient), alone.stencil)
    assert previous_stencil.stencil == alone.stencil
    assert set(outcomes(previous_stencil)) == {"MATCH"}
