"""The verdict on a tensor of a candidate: right ones pass whatever their sizes, small mistakes show in many entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.against_reference.made_up import beside_runs, rounded
from torch_gradcheck.against_reference.judging.judge import judged
from torch_gradcheck.against_reference.judging.parts import Part
from torch_gradcheck.arrays import Floats
from torch_gradcheck.verdicts.entry_check import Outcome

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


@given(
    shape=st.lists(st.integers(1, 20), max_size=3),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(DTYPES),
    noise=st.sampled_from([0.0, 1e-3, 1.0]),
    decades=st.integers(0, 6),
)
@settings(deadline=None, max_examples=60)
def test_what_is_right_but_for_rounding_passes(
    shape: list[int], seed: int, dtype: torch.dtype, noise: float, decades: int
) -> None:
    random = np.random.default_rng(seed)
    scales = 10.0 ** -random.uniform(0, decades, size=(*shape[:1], *[1] * len(shape[1:])))
    each = beside_runs(drawn(*shape, seed=seed) * scales, dtype=dtype, seed=seed, noise=noise * scales * 2.0**-10)
    assert not judged(each, 0.0).is_wrong


@pytest.mark.parametrize("size", [100, 1000, 10000])
def test_one_percent_in_bfloat16_shows_in_no_entry_and_is_found(size: int) -> None:
    right = drawn(size)
    found = judged(beside_runs(right, rounded(right) * 1.01), 0.0)
    assert found.worst_entry <= 1
    assert found.is_wrong
    assert found.slope > 1
    assert found.part == Part((), 0, 1)
    assert "times the right one as a whole" in found.as_a_whole
    assert found.detectable < 0.01


def test_a_factor_of_almost_1_is_told_by_what_it_differs() -> None:
    each = beside_runs(drawn(5000), dtype=torch.float32)
    found = judged(replace(each, candidate=[each.candidate[0] * (1 - 2.2e-6)] * 3), 0.0)
    assert "is 1 - 2.2e-06 times the right one as a whole" in found.as_a_whole


@pytest.mark.parametrize("tolerance", [0.0, 1e-3, 1e-2, 0.2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_factor_that_is_said_to_show_does(dtype: torch.dtype, tolerance: float) -> None:
    """Whichever way it is, and however the candidate was off before."""
    for seed in range(10):
        each = beside_runs(drawn(30, 7, seed=seed), dtype=dtype, seed=seed)
        seen = judged(each, tolerance).detectable
        for factor in (1 - 1.01 * seen, 1 + 1.01 * seen):
            assert judged(replace(each, candidate=[rounded(each.candidate[0] * factor, dtype)] * 3), tolerance).is_wrong


def test_a_constant_rounded_once_passes() -> None:
    right = drawn(10000)
    assert not judged(beside_runs(right, rounded(right * (1 + 0.4 * 2.0**-7))), 0.0).is_wrong


WRONG_PARTS = {
    "a row": (lambda x: x[7], 0.02, Part((0,), 7, 8)),
    "a column": (lambda x: x[:, 3], 0.02, Part((1,), 3, 4)),
    "a block": (lambda x: x[32:48], 0.013, Part((0,), 32, 48)),
    "a tail": (lambda x: x[:, 64:], 0.015, Part((1,), 64, 67)),
}


@pytest.mark.parametrize(("part", "size", "named"), list(WRONG_PARTS.values()), ids=list(WRONG_PARTS))
def test_a_part_that_is_wrong_as_a_whole_is_found(part: Callable[[Floats], Floats], size: float, named: Part) -> None:
    right = drawn(61, 67)
    each = beside_runs(right)
    given = each.candidate[0].reshape(right.shape).copy()
    part(given)[...] *= 1 - size
    found = judged(replace(each, candidate=[given.ravel()] * 3), 0.0)
    assert found.is_wrong
    assert found.part == named
    wrong = found.trial.results.outcome == Outcome.MISMATCH
    assert not np.any(wrong & ~named.inside(right.shape))
    assert str(named) in found.as_a_whole


@pytest.mark.parametrize(
    ("term", "words"),
    [(np.ones((64, 65)), "on average"), (drawn(64, 65, seed=9), "times w")],
    ids=["constant", "input"],
)
def test_a_term_that_is_missing_is_found_far_below_the_rounding_of_an_entry(term: Floats, words: str) -> None:
    right = drawn(64, 65)
    each = beside_runs(right)
    given = [rounded(each.candidate[0] + 0.002 * term.ravel())] * 3
    beside = {"w": term.ravel()} if words.endswith("w") else {}
    found = judged(replace(each, candidate=given, beside=beside), 0.0)
    assert found.worst_entry < 1
    assert words in found.as_a_whole


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_entry_that_is_off_by_a_tenth_is_found(dtype: torch.dtype) -> None:
    right = drawn(33, 17)
    each = beside_runs(right, dtype=dtype)
    given = each.candidate[0].copy()
    given[40] += 0.1 * np.abs(right).max()
    found = judged(replace(each, candidate=[given] * 3), 0.0)
    assert list(np.flatnonzero(found.trial.results.outcome == Outcome.MISMATCH)) == [40]
    assert found.as_a_whole == ""


def test_a_small_row_is_judged_by_its_own_size() -> None:
    right = drawn(20, 30) * np.where(np.arange(20) == 4, 1e-4, 1.0)[:, None]
    each = beside_runs(right)
    given = each.candidate[0].reshape(right.shape).copy()
    given[4, 5:9] *= 1.2
    found = judged(replace(each, candidate=[given.ravel()] * 3), 0.0)
    assert set(np.flatnonzero(found.trial.results.outcome == Outcome.MISMATCH)) <= set(range(120, 150))
    assert found.is_wrong


def test_float32_is_held_to_float32() -> None:
    right = drawn(50, 20)
    each = beside_runs(right, dtype=torch.float32)
    off = replace(each, candidate=[each.candidate[0] * (1 + 1e-6)] * 3)
    assert judged(off, 0.0).is_wrong
    assert not judged(off, 1e-5).is_wrong


def test_float64_is_held_to_float64() -> None:
    right = drawn(50, 20)
    each = beside_runs(right, dtype=torch.float64)
    assert not judged(each, 0.0).is_wrong
    assert judged(replace(each, candidate=[each.candidate[0] * (1 + 1e-12)] * 3), 0.0).is_wrong


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["NaN", "infinite"])
def test_what_is_not_finite_where_it_should_be_is_wrong(value: float) -> None:
    right = drawn(30)
    each = beside_runs(right)
    given = each.candidate[0].copy()
    given[3] = value
    found = judged(replace(each, candidate=[given] * 3), 0.0)
    assert list(np.flatnonzero(found.trial.results.outcome == Outcome.MISMATCH)) == [3]
    assert found.excess == np.inf


def test_the_same_infinity_on_both_sides_is_right() -> None:
    right = np.array([1.0, np.inf, -np.inf])
    found = judged(beside_runs(right, right, runs=[right] * 13), 0.0)
    assert not found.is_wrong
    assert found.why_unproven == ""


def test_entries_that_overflow_in_the_reference_are_undecided_unless_they_are_right() -> None:
    right = drawn(30)
    runs = [np.where(np.arange(30) < 2, np.inf, run) for run in beside_runs(right).rounded]
    given = rounded(right)
    given[1] *= 3
    outcome = judged(beside_runs(right, given, runs=runs), 0.0)
    assert [int(each) for each in outcome.trial.results.outcome[:3]] == [
        Outcome.MATCH,
        Outcome.UNDECIDED,
        Outcome.MATCH,
    ]
    assert "1 of 30 entries" in outcome.why_unproven


def test_what_equal_runs_of_the_candidate_differ_by_joins_the_bars() -> None:
    right = drawn(40, 40)
    each = beside_runs(right)
    random = np.random.default_rng(3)
    runs = [each.candidate[0] + 0.05 * random.normal(size=1600) for _ in range(3)]
    assert not judged(replace(each, candidate=runs), 0.0).is_wrong
    assert judged(replace(each, candidate=runs[:1] * 3), 0.0).is_wrong


def test_how_much_worse_than_the_reference_it_is() -> None:
    right = drawn(2000)
    assert judged(beside_runs(right, right), 0.0).rounding_ratio < 1
    assert judged(beside_runs(right, right, runs=[right] * 13), 0.0).rounding_ratio != 0.0
    exact = rounded(right)
    assert judged(beside_runs(exact, exact, runs=[exact] * 13), 0.0).rounding_ratio == 0.0


def test_zeros_and_nothing_are_judged() -> None:
    zeros = np.zeros((3, 20))
    assert not judged(beside_runs(zeros, zeros, runs=[zeros.ravel()] * 13), 0.0).is_wrong
    assert judged(beside_runs(zeros, zeros + 1e-3, runs=[zeros.ravel()] * 13), 0.0).is_wrong
    nothing = np.zeros((0, 4))
    assert not judged(beside_runs(nothing, nothing), 0.0).is_wrong
