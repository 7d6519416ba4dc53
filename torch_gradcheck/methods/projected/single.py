"""Single coordinates of suspected tensors, differenced one by one after their tensors were confirmed to be wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.methods.directional.confirm import LARGEST_MOVE, RESOLVED, Suspect
from torch_gradcheck.methods.directional.slope_check import error_bar_at_unit_step

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


def largest_step(suspect: Suspect, k: int, size: float, noise: Noise) -> float:
    """The largest step to take along one coordinate of a suspect, so that its error shows beside the noise.

    Args:
        suspect: the tensor.
        k: place of the coordinate in `suspect.coordinates`.
        size: of the tensor's entries.
        noise: of J.
    """
    resolving = 16 * RESOLVED * error_bar_at_unit_step(noise) / abs(float(suspect.error[k]))
    return min(resolving, LARGEST_MOVE * size)
