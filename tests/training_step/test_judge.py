from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.training_step.error_bars import Bars, bars_of, spread_by_entry
from torch_gradcheck.training_step.judge import Judged, NoiseOfRerun, judge, judge_by_rerun
from torch_gradcheck.verdicts.entry_check import EntryResults, Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

RIGHT = np.random.default_rng(0).normal(size=40)
THETA = np.random.default_rng(1).normal(size=40)
EPS = 2.0**-23


def trial(given: Floats, right: Floats = RIGHT, outcome: int = Outcome.MATCH) -> ParameterTrial:
    nothing = np.zeros(len(right))
    outcomes = np.full(len(right), outcome, dtype=np.int8)
    results = EntryResults(right, nothing + 1e-10, outcomes, nothing, nothing, Stencil(1e-5, 0))
    return ParameterTrial(np.arange(len(right)), given, True, results, evaluations=0, seconds=0.0)


def wrong(judged: Judged) -> list[int]:
    return np.flatnonzero(judged.trial.results.outcome == Outcome.MISMATCH).tolist()


def spoiled(by: float, where: int = 7) -> Floats:
    given = RIGHT.copy()
    given[where] += by
    return given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(RIGHT, [], id="equal"),
        pytest.param(spoiled(0.009), [], id="within the bar of an entry"),
        pytest.param(spoiled(0.02), [7], id="beyond it"),
        pytest.param(spoiled(np.nan), [7], id="nan"),
        pytest.param(spoiled(np.inf), [7], id="infinite"),
    ],
)
def test_an_entry_is_wrong_beyond_its_bar(given: Floats, expected: list[int]) -> None:
    assert wrong(judge(trial(given), Bars(0.01, 1.0), 1e-5)) == expected


def test_all_together_are_wrong_beyond_the_bar_of_the_norm() -> None:
    given = RIGHT * 1.05
    assert wrong(judge(trial(given), Bars(1.0, 1.0), 1e-5)) == []
    assert len(wrong(judge(trial(given), Bars(1.0, 0.1), 1e-5))) > 10


@pytest.mark.parametrize(("outcome", "given"), [(Outcome.UNDECIDED, RIGHT * 2), (Outcome.KINK, RIGHT)])
def test_what_is_not_known_of_the_right_gradient_stays_so(outcome: int, given: Floats) -> None:
    judged = judge(trial(given, outcome=outcome), Bars(0.01, 0.1), 1e-5)
    assert set(judged.trial.results.outcome.tolist()) == {outcome}


def test_a_gradient_that_autograd_gets_wrong_is_judged_by_the_right_one() -> None:
    assert wrong(judge(trial(RIGHT, outcome=Outcome.MISMATCH), Bars(0.01, 0.1), 1e-5)) == []


BARS = Bars(0.5, 2.0)
"""As of a low precision: they hide a small mistake."""


def by_rerun(given: Floats, plain: Floats, factor_moves: float = 0.001, summing: float = 0.0) -> Judged:
    noise, of_ranks = NoiseOfRerun(np.full(40, 0.025), factor_moves), np.where(np.arange(40) == 7, summing, 0.0)
    return judge_by_rerun(judge(trial(given), BARS, 1e-5), plain, noise, of_ranks, THETA, EPS, 1e-5)


PLAIN = RIGHT + np.random.default_rng(2).normal(scale=0.03, size=40)
"""The step's own run: right, up to rounding in that precision."""


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(PLAIN + 1e-2 * THETA, id="decayed"),
        pytest.param(PLAIN * 1.05, id="scaled"),
        pytest.param(np.where(np.arange(40) == 7, PLAIN + 0.2, PLAIN), id="one entry"),
    ],
)
def test_the_plain_run_shows_what_rounding_would_hide(given: Floats) -> None:
    assert not judge(trial(given), BARS, 1e-5).is_wrong
    assert by_rerun(given, PLAIN).is_wrong


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(PLAIN, id="equal"),
        pytest.param(PLAIN * (1 + 2.0**-23), id="rounded"),
        pytest.param(PLAIN * 1.00005, id="a factor that is rounded, such as that of a clipped norm"),
        pytest.param(PLAIN + np.random.default_rng(3).normal(scale=0.03, size=40), id="rounded in another order"),
        pytest.param(np.where(np.arange(40) == 7, PLAIN + 0.09, PLAIN), id="one entry that rounding may move"),
    ],
)
def test_a_right_gradient_is_not_accused_by_the_plain_run(given: Floats) -> None:
    assert not by_rerun(given, PLAIN).is_wrong


@pytest.mark.parametrize(("factor_moves", "accused"), [(0.005, True), (0.02, False)], ids=["less", "as much"])
def test_a_common_factor_that_rounding_moves_is_not_accused(factor_moves: float, accused: bool) -> None:
    """The residual of a nearly perfect fit is a small difference: rounding moves it, and with it all entries alike."""
    assert by_rerun(PLAIN * 1.05, PLAIN, factor_moves).is_wrong is accused


def test_bars_are_what_runs_with_noise_leave() -> None:
    noisy = [PLAIN + 0.01, PLAIN - 0.02]
    bars = bars_of([PLAIN, *noisy], PLAIN + 0.03, kernels=pytest.fail)
    assert bars.entry == pytest.approx(6 * 0.02)
    assert bars.norm == pytest.approx(6 * 0.02 * np.sqrt(40))


def test_a_plain_run_that_is_further_off_is_excused_as_far_as_its_kernels_are() -> None:
    native = [PLAIN, PLAIN + 0.001]
    off = PLAIN + 1.0
    alike = bars_of(native, off, kernels=lambda: [PLAIN])
    exact = bars_of(native, off, kernels=lambda: [off])
    assert alike.entry == pytest.approx(6 * 0.001 + 1.5)
    assert exact.entry == pytest.approx(6 * 0.001)


def test_bars_without_a_native_run_are_those_of_the_kernels() -> None:
    assert bars_of([], RIGHT, kernels=lambda: [RIGHT + 0.1]).entry == pytest.approx(0.6)


def test_bars_have_no_limit_where_a_run_is_not_finite() -> None:
    assert bars_of([PLAIN, PLAIN * np.inf], PLAIN, kernels=lambda: [PLAIN]).entry == np.inf


def test_an_entry_moves_as_its_row_and_column_do() -> None:
    size = np.outer([1.0, 10.0, 1.0], [1.0, 1.0, 2.0]).ravel()
    noisy = [size, -size, np.where(np.arange(9) == 4, 0.0, size)]
    np.testing.assert_allclose(spread_by_entry(np.zeros(9), noisy, rows=3), size)
    lucky = [np.where(np.arange(9) == 4, 0.0, each) for each in noisy]
    assert 1 < spread_by_entry(np.zeros(9), lucky, rows=3)[4] < 10, "the entry that did not move is like its neighbours"


@pytest.mark.parametrize(("where", "accused"), [(7, False), (8, True)], ids=["where it may", "elsewhere"])
def test_an_entry_that_the_sum_over_ranks_may_move_is_not_accused(where: int, accused: bool) -> None:
    """Their gradients cancel in entry 7, so that it is what rounding of the summands has left."""
    given = np.where(np.arange(40) == where, PLAIN + 0.2, PLAIN)
    assert by_rerun(given, PLAIN, summing=0.2).is_wrong is accused
