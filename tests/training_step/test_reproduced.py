"""What a step that is reproduced to the last digit tells of a `.grad` that is not, however coarse its precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.training_step.error_bars import Bars
from torch_gradcheck.training_step.judge import Judged
from torch_gradcheck.training_step.reproduced import judged_by_rerun
from torch_gradcheck.verdicts.entry_check import EntryResults, Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

SINGLE, BFLOAT16 = 2.0**-23, 2.0**-7
SIZES = (40, 6, 30, 12, 5)
"""Entries of five tensors; the second is small."""

Gradients = dict[int, Floats]


def in_bfloat16(values: Floats) -> Floats:
    return np.asarray(torch.from_numpy(values).bfloat16().double().numpy())


RNG = np.random.default_rng(0)
PLAIN: Gradients = {k: RNG.normal(size=size).astype(np.float32).astype(np.float64) for k, size in enumerate(SIZES)}
"""The rerun, in float32; its bars below are those of bfloat16."""

NO_RANKS: Gradients = {k: np.zeros(size) for k, size in enumerate(SIZES)}
"""What a sum over ranks rounds where there are none."""


def judged(given: Floats, right: Floats, bar: float = 0.1) -> Judged:
    nothing, outcome = np.zeros(len(right)), np.full(len(right), Outcome.MATCH, dtype=np.int8)
    results = EntryResults(right, nothing, outcome, nothing, nothing, Stencil(1e-5, 0))
    trial = ParameterTrial(np.arange(len(right)), given, True, results, evaluations=0, seconds=0.0)
    return Judged(trial, Bars(bar, bar * float(np.linalg.norm(right))))


def wrong(given: Gradients, *, plain: Gradients = PLAIN, again: Gradients = PLAIN, bar: float = 0.1) -> set[int]:
    before = {k: judged(given[k], PLAIN[k] * 1.001, bar) for k in given}
    own = dict.fromkeys(given, SINGLE)
    after = judged_by_rerun(before, plain, again, NO_RANKS, own, BFLOAT16, 1e-5)
    return {k for k, each in after.items() if each.is_wrong}


def noisy(*which: int, share: float = 0.05, seed: int = 1) -> Gradients:
    rng = np.random.default_rng(seed)
    moved = {k: values + share * rng.normal(size=len(values)) for k, values in PLAIN.items()}
    return {k: moved[k] if k in which else values for k, values in PLAIN.items()}


def test_the_rerun_itself_is_right() -> None:
    assert wrong(PLAIN) == set()


@pytest.mark.parametrize("position", range(len(SIZES)))
def test_noise_in_one_tensor_is_seen_where_all_others_are_the_reruns(position: int) -> None:
    assert wrong(noisy(position)) == {position}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        pytest.param(noisy(1, share=1e-3), {}, id="as its own operation rounds"),
        pytest.param(noisy(*range(5)), {}, id="no tensor is reproduced"),
        pytest.param(noisy(0, 2, 3), {}, id="too few are"),
        pytest.param(noisy(1), {"again": noisy(1, seed=2)}, id="the reruns differ, too"),
        pytest.param(noisy(1), {"again": {}}, id="there was no second rerun"),
        pytest.param(noisy(1), {"bar": 1.5}, id="rounding leaves nothing of the gradient"),
    ],
)
def test_it_is_not_accused_where_something_else_explains_it(given: Gradients, options: dict[str, object]) -> None:
    assert wrong(given, **options) == set()  # type: ignore[arg-type]


def test_a_gradient_that_was_rounded_is_seen() -> None:
    assert wrong({k: in_bfloat16(values) for k, values in PLAIN.items()}) == set(PLAIN)
    unlike = {k: values * (1 + 1e-4) for k, values in PLAIN.items()}
    rounded = {k: in_bfloat16(values) for k, values in unlike.items()}
    assert wrong(rounded) == set(PLAIN), "though the rerun gives it to four digits only"


def test_a_sum_that_autocast_rounds_where_it_keeps_its_casts_is_right() -> None:
    given = {**PLAIN, 0: in_bfloat16(PLAIN[0])}
    assert wrong(given) == {0}
    assert wrong(given, again=given) == set()
    assert wrong(given, again={}) == set()


@pytest.mark.parametrize("change", [np.sign, in_bfloat16], ids=["of one digit", "of bfloat16"])
def test_numbers_that_the_rerun_rounds_as_well_are_right(change: Callable[[Floats], Floats]) -> None:
    numbers = {k: change(values) for k, values in PLAIN.items()}
    before = {k: judged(values, values) for k, values in numbers.items()}
    after = judged_by_rerun(before, numbers, numbers, NO_RANKS, dict.fromkeys(numbers, SINGLE), BFLOAT16, 1e-5)
    assert not any(each.is_wrong for each in after.values())


def test_a_few_numbers_of_few_digits_are_no_rounding() -> None:
    """Three of a bias, such as 0.5, 0.25 and −0.75."""
    given = {**PLAIN, 1: PLAIN[1] * (1 + 1e-6)}
    given[1][:] = in_bfloat16(given[1])
    plain = {**PLAIN, 1: given[1] * (1 + 1e-3)}
    assert wrong(given, plain=plain, again={}) == set()
