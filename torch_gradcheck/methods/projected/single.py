"""Single coordinates of suspected tensors, differenced one by one after their tensors were confirmed to be wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.sampling import Sampler, Samples
from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.methods.directional.confirm import LARGEST_MOVE, RESOLVED, Suspect
from torch_gradcheck.methods.directional.slope_check import entry_check_of, error_bar_at_unit_step
from torch_gradcheck.verdicts.entry_check import EntryResults
from torch_gradcheck.verdicts.judge import judge_each

COORDINATES = 2
"""How many wrong coordinates are confirmed one by one: both in one tensor, or one in each of two."""


def worst(suspects: Mapping[int, Suspect]) -> list[tuple[int, int]]:
    """The `COORDINATES` with the largest errors: position in θ, and place k in the suspect's `coordinates`."""
    ranked = sorted(suspects, key=lambda position: -suspects[position].signal)[:COORDINATES]
    each = COORDINATES // max(len(ranked), 1)
    return [
        (position, int(k))
        for position in ranked
        for k in np.argsort(-np.abs(suspects[position].error), kind="stable")[:each]
    ]


def single_results(
    suspect: Suspect, k: int, size: float, sampler: Sampler, noise: Noise, tolerance: float
) -> EntryResults:
    """The results of differences of J along one coordinate of a suspect.

    Args:
        suspect: the tensor.
        k: place of the coordinate in `suspect.coordinates`.
        size: of the tensor's entries.
        sampler: J along single coordinates of the tensor.
        noise: of J.
        tolerance: the largest relative error that passes.
    """
    coordinates, error = suspect.coordinates[k : k + 1], suspect.error[k : k + 1]
    unit = np.minimum(16 * RESOLVED * error_bar_at_unit_step(noise) / np.abs(error), LARGEST_MOVE * size)

    def at_coordinate(which: Indices, steps: Floats) -> Samples:
        return sampler(coordinates[which], steps)

    analytic, sizes = suspect.on_trial[k : k + 1], np.full(1, size)
    return judge_each(entry_check_of(at_coordinate, analytic, unit, sizes, noise, tolerance))
