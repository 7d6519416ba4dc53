"""Which entries of a tensor were tried: some of them, or all, of which no list is held."""

from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.arrays import Indices
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.verdicts.entry_check import EntryResults
from torch_gradcheck.verdicts.trial import ParameterTrial


def trial_at(coordinates: Indices | range) -> ParameterTrial:
    numbers = np.zeros(len(coordinates))
    results = EntryResults(numbers, numbers, numbers.astype(np.int8), numbers, numbers, Stencil(1.0, 0))
    return ParameterTrial(coordinates, numbers, True, results, evaluations=0, seconds=0.0)


@pytest.mark.parametrize(
    "coordinates", [np.array([1, 3, 4]), np.arange(6), range(6)], ids=["some", "all, listed", "all"]
)
def test_entries_and_coordinates_are_told_from_each_other(coordinates: Indices | range) -> None:
    trial, values, entries = trial_at(coordinates), 10.0 * np.arange(6), np.array([0, 2])
    assert trial.at(values).tolist() == [10.0 * k for k in coordinates]
    assert trial.flat(entries).tolist() == [coordinates[0], coordinates[2]]
    assert trial.entries(trial.flat(entries)).tolist() == entries.tolist()
    assert int(trial.entries(int(coordinates[2]))) == 2


def test_numbers_of_a_whole_tensor_are_not_copied() -> None:
    values = np.arange(6.0)
    assert trial_at(range(6)).at(values) is values
