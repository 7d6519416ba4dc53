from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.objective.theta import ThetaEntry, theta_of
from torch_gradcheck.reporting.facts import Pairs, ParameterReport, Status, Verdict
from torch_gradcheck.verdicts.entry_check import EntryResults, Outcome
from torch_gradcheck.verdicts.ratio import relative_error, relative_error_and_noise
from torch_gradcheck.verdicts.rows import compared_row, frozen_row, made_undecided
from torch_gradcheck.verdicts.shown_entries import PLOTTED, PLOTTED_WRONG, WORST
from torch_gradcheck.verdicts.trial import ParameterTrial

TOLERANCE = 1e-5


def entry_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> ThetaEntry:
    model = nn.Module()
    model.p = nn.Parameter(torch.ones(shape, dtype=dtype))
    return theta_of(model)[0]


def row(
    analytic: list[float],
    numeric: list[float],
    outcome: list[int] | int = Outcome.MATCH,
    error_bar: float = 1e-12,
    reached: bool = True,
    entry: ThetaEntry | None = None,
) -> ParameterReport:
    count = len(analytic)
    results = EntryResults(
        numeric=np.array(numeric, dtype=np.float64),
        error_bar=np.full(count, error_bar),
        outcome=np.full(count, outcome, dtype=np.int8),
        left=np.full(count, -1.0),
        right=np.full(count, 1.0),
        stencil=Stencil(1e-6, 0),
    )
    trial = ParameterTrial(
        np.arange(count), np.array(analytic, dtype=np.float64), reached, results, evaluations=9, seconds=0.5
    )
    return compared_row(entry or entry_of((count,)), trial, TOLERANCE)


# Ng's ratio --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("analytic", "numeric", "ratio"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([3.0, 4.0], [-3.0, -4.0], 1.0),
        ([2.0], [1.0], 1 / 3),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([], [], 0.0),
        ([1e-200, 0.0], [2e-200, 0.0], 1 / 3),
        ([1e200], [2e200], 1 / 3),
        ([1.0, 0.0], [0.0, 1.0], math.sqrt(2) / 2),
    ],
    ids=["equal", "zero", "sign", "twice", "zeros", "empty", "tiny", "huge", "places"],
)
def test_ngs_ratio(analytic: list[float], numeric: list[float], ratio: float) -> None:
    assert relative_error(np.array(analytic), np.array(numeric)) == pytest.approx(ratio, rel=1e-14)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_ratio_of_what_is_not_finite_passes_no_comparison(value: float) -> None:
    ratio = relative_error(np.array([1.0, value]), np.array([1.0, 2.0]))
    assert not ratio <= TOLERANCE
    assert Verdict.of(ratio) is Verdict.WORRY


numbers = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5)


@settings(derandomize=True, deadline=None)
@given(one=numbers, other=numbers, exponent=st.integers(-250, 250))
def test_the_ratio_is_symmetric_bounded_and_without_a_scale(
    one: list[float], other: list[float], exponent: int
) -> None:
    size = min(len(one), len(other))
    a, b = np.array(one[:size]), np.array(other[:size])
    ratio = relative_error(a, b)
    assert 0 <= ratio <= 1 + 1e-15
    assert relative_error(b, a) == pytest.approx(ratio, rel=1e-12)
    if min(np.abs(a).max(), np.abs(b).max()) > 1e-3:
        assert relative_error(a * 10.0**exponent, b * 10.0**exponent) == pytest.approx(ratio, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("ratio", "word"),
    [(0.0, "great"), (1e-7, "great"), (1.1e-7, "good"), (1e-5, "good"), (1.1e-5, "doubtful"), (1e-3, "doubtful"),
     (1.1e-3, "worry"), (1.0, "worry"), (math.nan, "worry")],
)  # fmt: skip
def test_the_words_of_the_lecture(ratio: float, word: str) -> None:
    assert Verdict.of(ratio) == word


# Rows --------------------------------------------------------------------------------------------------------------

M, K, U, X = Outcome.MATCH, Outcome.KINK, Outcome.UNDECIDED, Outcome.MISMATCH


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        ([M, M, M], Status.MATCH, ""),
        ([M, K, M], Status.KINK, "J is not differentiable along 1 of 3 coordinates"),
        ([M, U, K], Status.UNDECIDED, "at 1 of 3 coordinates no two steps agree on a derivative"),
        ([X, U, K], Status.MISMATCH, "1 of 3 coordinates"),
        ([X, X, X], Status.MISMATCH, "3 of 3 coordinates are wrong"),
    ],
    ids=["match", "kink", "undecided", "one", "all"],
)
def test_the_status_is_that_of_the_worst_coordinate(outcome: list[int], status: Status, reason: str) -> None:
    found = row([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], outcome)
    assert found.status is status
    assert reason in found.reason
    assert bool(found.reason) == bool(reason)
    assert found.mismatched == outcome.count(X)


def test_zero_on_both_sides_is_flat() -> None:
    found = row([0.0, 1e-14], [1e-13, -1e-14], error_bar=1e-12)
    assert found.status is Status.FLAT
    assert "both sides are zero to within 1e-12: nothing was proven" in found.reason


def test_zero_on_one_side_only_is_not_flat() -> None:
    assert row([0.0, 1.0], [0.0, 1.0], error_bar=1e-12).status is Status.MATCH


@pytest.mark.parametrize(
    ("reached", "numeric", "status"),
    [(False, 0.0, Status.UNUSED), (True, 0.0, Status.FLAT), (False, 1e-14, Status.FLAT)],
    ids=["not reached", "reached", "not reached, but J moves"],
)
def test_unused_is_what_neither_side_depends_on(reached: bool, numeric: float, status: Status) -> None:
    assert row([0.0], [numeric], reached=reached).status is status


def test_no_entries_are_flat() -> None:
    found = row([], [])
    assert found.status is Status.FLAT
    assert found.reason == "it has no entries"
    assert found.checked == 0
    assert found.worst == []


def test_a_ratio_above_the_tolerance_within_the_error_bars_is_undecided() -> None:
    found = row([1.0], [1.001], error_bar=0.01)
    assert found.status is Status.UNDECIDED
    assert "the noise of J hides errors below 5e-03" in found.reason


def test_the_figures() -> None:
    found = row([1.0, 2.0, 5.0], [1.0, 2.5, 5.0], [M, X, M], error_bar=0.25)
    assert found.relative_error == pytest.approx(0.5 / (math.sqrt(30) + math.sqrt(32.25)))
    assert (found.max_abs_error, found.noise, found.eps, found.checked) == (0.5, 0.25, 1e-6, 3)
    assert (found.evaluations, found.seconds, found.numel, found.shape) == (9, 0.5, 3, (3,))
    assert found.verdict is Verdict.WORRY


def test_the_worst_coordinates_come_first_wrong_ones_before_all() -> None:
    found = row([1.0, 0.0, 9.0, 1.0], [1.5, 3.0, 9.0, math.nan], [X, K, M, U])
    assert [coordinate.index for coordinate in found.worst] == [(0,), (3,), (1,), (2,)]
    assert [str(coordinate.status) for coordinate in found.worst] == ["mismatch", "undecided", "kink", "match"]
    assert [coordinate.slopes for coordinate in found.worst] == [None, None, (-1.0, 1.0), None]
    assert (found.worst[0].analytic, found.worst[0].numeric) == (1.0, 1.5)


def test_no_more_than_ten_coordinates_are_kept() -> None:
    found = row([0.0] * 50, list(range(50)), X)
    assert [coordinate.index for coordinate in found.worst] == [(49 - k,) for k in range(WORST)]
    assert found.mismatched == 50


def test_indices_are_in_the_shape_of_the_parameter() -> None:
    found = row([0.0] * 6, [0, 0, 0, 0, 0, 1.0], [M] * 5 + [X], entry=entry_of((2, 3)))
    assert found.worst[0].index == (1, 2)
    assert row([0.0], [1.0], X, entry=entry_of(())).worst[0].index == ()


def test_complex_entries_have_parts() -> None:
    found = row([0.0] * 4, [0, 0, 0, 1.0], [M, M, M, X], entry=entry_of((2,), torch.complex64))
    assert (found.worst[0].index, found.worst[0].part) == ((1,), "imag")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_entry_that_is_not_finite(value: float) -> None:
    found = row([1.0, value], [1.0, 2.0], [M, X])
    assert found.status is Status.MISMATCH
    assert found.worst[0].index == (1,)
    assert not found.relative_error <= TOLERANCE


def test_a_frozen_parameter() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    found = frozen_row(theta_of(model)[1])
    assert (found.name, found.status, found.checked, found.verdict) == ("bias", Status.FROZEN, 0, None)
    assert found.reason == "requires_grad is False"


# Entries to plot ----------------------------------------------------------------------------------------------------


def row_of_many(count: int, wrong: list[int]) -> ParameterReport:
    """The row of a tensor with so many entries, these of them wrong: the last of them by most."""
    numeric = np.linspace(1.0, 2.0, count)
    analytic, outcome = numeric.copy(), np.full(count, Outcome.MATCH)
    analytic[wrong] += 1.0 + np.arange(len(wrong))
    outcome[wrong] = Outcome.MISMATCH
    return row(list(analytic), list(numeric), list(outcome))


def test_all_entries_of_a_small_tensor_can_be_plotted() -> None:
    found = row([1.0, 2.0, 5.0], [1.0, 2.0, 3.0], [Outcome.MATCH, Outcome.MATCH, Outcome.MISMATCH]).pairs
    assert found == Pairs((0, 1, 2), (1.0, 2.0, 5.0), (1.0, 2.0, 3.0), (False, False, True))


@pytest.mark.parametrize(
    ("count", "wrong"), [(5000, [17, 4711]), (20_000, list(range(0, 20_000, 2)))], ids=["few wrong", "half wrong"]
)
def test_of_a_large_tensor_the_worst_entries_are_kept_and_some_of_all_others(count: int, wrong: list[int]) -> None:
    found = row_of_many(count, wrong)
    assert found.pairs is not None
    kept, flags = found.pairs.entries, found.pairs.wrong
    assert PLOTTED_WRONG // 2 < len(kept) <= PLOTTED_WRONG
    assert {each.index[0] for each in found.worst} <= set(kept)
    assert sorted(set(kept)) == list(kept)
    assert [entry for entry, flag in zip(kept, flags, strict=True) if flag] == [k for k in kept if k in set(wrong)]
    assert min(len(wrong), 100) <= sum(flags) < len(flags)
    assert {entry * 4 // count for entry in kept} == {0, 1, 2, 3}, "from every part of the tensor"
    assert row_of_many(count, wrong).pairs == found.pairs


def test_of_a_right_tensor_few_entries_are_kept() -> None:
    found = row_of_many(5000, []).pairs
    assert found is not None
    assert 10 <= len(found.entries) <= PLOTTED
    assert not any(found.wrong)


def test_a_row_that_becomes_undecided_has_no_wrong_entries_to_plot() -> None:
    found = made_undecided(row_of_many(50, [3]), "since it is").pairs
    assert found is not None
    assert not any(found.wrong)


@pytest.mark.parametrize(
    ("analytic", "numeric", "error_bar", "share"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.1, 0.1 * math.sqrt(2) / 10),
        ([0.0], [0.0], 0.1, math.nan),
        ([1e200], [1e200], 1e190, 5e-11),
        ([1.0], [1.0], math.inf, math.inf),
        ([math.nan], [1.0], 0.1, math.nan),
    ],
    ids=["plain", "zero", "huge", "unknown", "NaN"],
)
def test_error_bars_are_a_share_of_what_the_ratio_is_relative_to(
    analytic: list[float], numeric: list[float], error_bar: float, share: float
) -> None:
    one, other = np.array(analytic), np.array(numeric)
    for bars in (np.full(len(numeric), error_bar), np.broadcast_to(error_bar, len(numeric))):
        with np.errstate(invalid="ignore"):
            ratio, noise = relative_error_and_noise(one, other, bars)
            assert ratio == pytest.approx(relative_error(one, other), abs=0, nan_ok=True)
        assert noise == pytest.approx(share, nan_ok=True)
