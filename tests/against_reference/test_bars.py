"""The error bars of a candidate's entries, and the runs of the reference that they are measured by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.against_reference.made_up import beside_runs
from torch_gradcheck import check_function
from torch_gradcheck.against_reference.judging.bars import MARGIN, bars_of
from torch_gradcheck.precision.rounding_noise import RoundingMode
from torch_gradcheck.training_step.error_bars import of_entries_alike


def test_an_entry_may_be_off_by_a_few_units_in_its_last_place_at_least() -> None:
    right = np.array([1.0, 100.0, 0.01])
    bars = bars_of(beside_runs(right, right, runs=[right] * 13))
    assert bars.entry == pytest.approx(MARGIN * 2.0**-8 * right, rel=0.5)


def test_an_entry_that_no_run_moved_has_the_bar_of_its_row_and_column() -> None:
    random = np.random.default_rng(0)
    rows, columns = 10.0 ** np.arange(5)[:, None], 2.0 ** np.arange(40)[None] / 2.0**20
    runs = [(rows * columns * random.normal(size=(5, 40))).ravel() for _ in range(13)]
    for run in runs:
        run[47] = 0.0
    entry = bars_of(beside_runs(np.zeros((5, 40)), np.zeros((5, 40)), runs=runs)).entry.reshape(5, 40)
    assert 0.2 < entry[1, 7] / entry[1, 6] / 2 < 3


def test_squares_are_expected_along_every_axis() -> None:
    factors = [np.array([1.0, 9.0]), np.array([4.0, 1.0, 25.0]), np.array([1.0, 16.0])]
    squares = (factors[0][:, None, None] * factors[1][None, :, None] * factors[2]).ravel()
    assert of_entries_alike(squares, (2, 3, 2)) == pytest.approx(squares)


def test_entries_that_are_not_finite_leave_the_bars_of_others_alone() -> None:
    right = np.random.default_rng(0).normal(size=(10, 10))
    plain = beside_runs(right)
    spoilt = [np.where(np.arange(100) == 5, np.inf, run) for run in plain.rounded]
    bars = bars_of(beside_runs(right, right, runs=spoilt))
    assert list(np.flatnonzero(bars.overflowed)) == [5]
    assert np.isfinite(bars.entry).all()
    assert bars.entry[6:] == pytest.approx(bars_of(plain).entry[6:], rel=0.2)


def test_where_one_run_is_far_off_the_candidate_may_be_too() -> None:
    right = np.zeros(5000)
    runs = [1e-3 * np.random.default_rng(seed).normal(size=5000) for seed in range(13)]
    quiet = bars_of(beside_runs(right, right, runs=runs)).entry[7]
    runs[3][100] = 1.0
    assert bars_of(beside_runs(right, right, runs=runs)).entry[7] > 5 * quiet


def moved(function: object, between: torch.dtype | None, *arguments: Tensor) -> Tensor:
    """How far noise moves a result, relative to it: the furthest of a few runs."""
    generator = torch.Generator().manual_seed(0)
    plain, furthest = function(*arguments), torch.zeros(())  # type: ignore[operator]
    for _ in range(5):
        with RoundingMode(generator, between):
            furthest = torch.maximum(furthest, ((function(*arguments) - plain) / plain).abs().max())  # type: ignore[operator]
    return furthest


A, B = torch.rand(8, 9) + 0.5, torch.rand(9, 7) + 0.5

HANDED_ON = {
    "a product of matrices": (lambda: A @ B, True),
    "an exponential": (A.exp, True),
    "a sum": (lambda: A.sum(0), False),
    "a difference": (lambda: A - 3.0, False),
    "a logarithm of a sum": (lambda: A.logsumexp(0), False),
    "a number": (lambda: A.amax() * 3.0, False),
}


@pytest.mark.parametrize(("computed", "is_coarse"), list(HANDED_ON.values()), ids=list(HANDED_ON))
def test_what_is_handed_on_is_rounded_to_the_candidates_dtype_and_what_is_added_up_is_not(
    computed: object, is_coarse: bool
) -> None:
    assert (moved(computed, torch.bfloat16) > 1e-4) == is_coarse
    assert moved(computed, None) < 1e-5


def rounds_between(x: Tensor, w: Tensor) -> Tensor:
    hidden = torch.tanh(x.float()).to(x.dtype)
    return (hidden.float() @ w.float()).to(x.dtype)


def adds_in_its_dtype(x: Tensor, w: Tensor) -> Tensor:
    total = torch.zeros(len(x), w.shape[1], dtype=x.dtype)
    for k in range(x.shape[1]):
        total = total + torch.tanh(x[:, k : k + 1].float()).to(x.dtype) * w[k]
    return total


@pytest.mark.parametrize(
    ("kernel", "is_right"),
    [(rounds_between, True), pytest.param(adds_in_its_dtype, False, marks=pytest.mark.slow)],
    ids=["handed on", "added up"],
)
def test_a_reference_in_float32_allows_numbers_to_be_handed_on_in_bfloat16(kernel: object, is_right: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x, w = [torch.randn(shape, generator=draw).bfloat16() for shape in ((9, 101), (101, 7))]

    def reference(x: Tensor, w: Tensor) -> Tensor:
        return (torch.tanh(x.float()) @ w.float()).to(x.dtype)

    report = check_function(kernel, (x, w), reference=reference)  # type: ignore[arg-type]
    assert (report["output"].status == "match") == is_right, report
