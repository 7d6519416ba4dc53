"""Gradients of reruns, held in half the memory where they are those of a step in float32."""

from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.arrays import BLOCK, Floats, by_number
from torch_gradcheck.training_step.replay import CAST, Runs, _held

SINGLE = np.random.default_rng(0).standard_normal(BLOCK + 7).astype(np.float32).astype(np.float64)

FINER = SINGLE * (1 + 1e-12)


def with_last(value: float) -> Floats:
    changed = SINGLE.copy()
    changed[-1] = value
    return changed


@pytest.mark.parametrize(
    ("values", "scale", "held"),
    [
        (SINGLE, 1.0, np.float32),
        (SINGLE, 1024.0, np.float32),
        (SINGLE * (1 + CAST / 4), 1.0, np.float32),
        (with_last(np.nan), 1.0, np.float32),
        (with_last(-np.inf), 1.0, np.float32),
        (with_last(1e39), 1.0, np.float64),
        (with_last(1e-60), 1.0, np.float64),
        (FINER, 1.0, np.float64),
        (SINGLE, 3.0, np.float64),
    ],
    ids=[
        "float32",
        "power of two",
        "noise of the cast",
        "NaN",
        "infinite",
        "too large",
        "too small",
        "finer",
        "scaled",
    ],
)
def test_a_run_is_held_in_float32_where_that_is_all_of_it(values: Floats, scale: float, held: type) -> None:
    run = _held(values, scale)
    assert run.dtype == held
    assert Runs([run])[0].dtype == np.float64
    np.testing.assert_allclose(Runs([run])[0], values / scale, rtol=CAST, atol=0)


def test_runs_are_a_sequence() -> None:
    plain, *noisy = Runs([_held(SINGLE, 1.0), _held(FINER, 1.0), _held(SINGLE, 2.0)])
    assert np.array_equal(plain, SINGLE)
    assert np.array_equal(noisy[0], FINER)
    assert len(Runs([SINGLE, FINER, SINGLE])[1:]) == len(noisy)


def test_a_number_that_is_broadcast_stays_one() -> None:
    bars = by_number(lambda bar: 3 * bar, np.broadcast_to(np.float64(2.0), (5,)))
    assert bars.tolist() == [6.0] * 5
    assert bars.strides == (0,)
    assert by_number(lambda bar: 3 * bar, np.arange(2.0)).tolist() == [0.0, 3.0]
