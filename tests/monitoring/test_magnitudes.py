"""Norms, largest entries, means and shares of zeros, of every kind of tensor, summed in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_gradcheck.arrays import BLOCK
from torch_gradcheck.monitoring.magnitudes import Magnitudes, distance, joint_norm, magnitudes_of

X = torch.tensor([[3.0, 0.0], [-4.0, 0.0]])


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(X, id="dense"),
        pytest.param(X.T, id="transposed"),
        pytest.param(X.double(), id="float64"),
        pytest.param(X.bfloat16(), id="bfloat16"),
        pytest.param(X.to_sparse(), id="sparse"),
        pytest.param(torch.tensor([3j, 0, -4, 0]), id="complex"),
        pytest.param(torch.tensor([3j, 0, -4, 0]).conj(), id="lazily conjugated"),
        pytest.param(X.requires_grad_(), id="requires a gradient"),
    ],
)
def test_the_magnitudes_of(tensor: Tensor) -> None:
    assert magnitudes_of(tensor) == Magnitudes(norm=5, largest=4, mean=7 / 4, zeros=1 / 2, finite=True)


def test_a_complex_entry_is_one_modulus() -> None:
    assert magnitudes_of(torch.tensor([3 + 4j, 0])) == Magnitudes(
        norm=5, largest=5, mean=5 / 2, zeros=1 / 2, finite=True
    )


def test_an_empty_tensor_has_none() -> None:
    assert magnitudes_of(torch.empty(0, 3)) == Magnitudes(norm=0, largest=0, mean=0, zeros=0, finite=True)


def test_sums_are_those_of_float64() -> None:
    x = torch.full((BLOCK + 7,), 0.1)  # float32 sums of it are off by 1e-4
    found, entry = magnitudes_of(x), float(x[0])
    assert found.norm == pytest.approx(entry * math.sqrt(len(x)), rel=1e-13)
    assert found.mean == pytest.approx(entry, rel=1e-13)


@pytest.mark.parametrize("size", [1e-200, 1e200], ids=["whose square is 0", "whose square is infinite"])
def test_the_norm_of_numbers(size: float) -> None:
    x = torch.tensor([3 * size, 4 * size], dtype=torch.float64)
    assert magnitudes_of(x).norm == pytest.approx(5 * size, rel=1e-14)
    assert distance(x, -x) == pytest.approx(10 * size, rel=1e-14)


@pytest.mark.parametrize("entry", [math.nan, math.inf], ids=str)
def test_what_is_not_finite_shows(entry: float) -> None:
    found = magnitudes_of(torch.tensor([entry, 0, 1]))
    assert not found.finite
    assert not math.isfinite(found.norm)
    assert found.zeros == pytest.approx(1 / 3)


def test_infinite_entries_that_stay_are_no_distance_apart() -> None:
    assert distance(torch.tensor([-math.inf, 1]), torch.tensor([-math.inf, 4])) == 3
    assert math.isnan(distance(torch.tensor([math.nan]), torch.tensor([1.0])))


def test_a_joint_norm_does_not_lose_nan() -> None:
    assert joint_norm([3, 4]) == 5
    assert math.isnan(joint_norm([math.nan, math.inf]))


def test_a_caller_who_has_numpy_raise_hears_nothing_of_sums_that_overflow() -> None:
    large = torch.tensor([1.5e308, 1.5e308, 1e-300], dtype=torch.float64)
    with np.errstate(all="raise"):
        assert magnitudes_of(large).mean == math.inf
        assert distance(large, -large) == math.inf
