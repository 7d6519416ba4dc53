"""Confirms by differences of J what a comparison with the verified gradient says is wrong: blocks, then single entries.

The verified gradient names the entries, J judges: a block is a direction through the wrong entries of a tensor, along
their error, so that the slopes on trial and verified lie as far apart as they can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.sampling import Sampler, Samples
from torch_gradcheck.methods.projected.directions import Direction, Directions, Motion, slope
from torch_gradcheck.methods.projected.slope_check import contradicts, entry_check_of, roundoff_of
from torch_gradcheck.methods.projected.verify import Certificate
from torch_gradcheck.verdicts.entry_check import ACCUSATION, EntryResults
from torch_gradcheck.verdicts.judge import judge_each

BLOCKS = 4
"""How many blocks, each of one or more tensors, are confirmed at most; those of several only if all of it is wrong."""

SINGLE = 8
"""How many tensors of a block that was not confirmed as a whole are looked at one by one."""

COORDINATES = 2
"""How many wrong coordinates are confirmed one by one: in one tensor, or in as many as are wrong."""

FURTHEST = 0.25
"""The largest part of its own size that a tensor or a coordinate is moved by."""

RESOLVED = 256.0
"""By how much an entry's error exceeds the roundoff at the third of them."""


@dataclass(frozen=True)
class Suspect:
    """A tensor whose gradient on trial is not the verified one.

    Attributes:
        coordinates: shape (W,), where it is not.
        error: shape (W,), verified minus on trial.
        certificate: of the verified gradient.
    """

    coordinates: Indices
    error: Floats
    certificate: Certificate

    def sizes(self, entries: int) -> Floats:
        """|error| at every coordinate of the tensor."""
        sizes = np.zeros(entries)
        sizes[self.coordinates] = np.abs(self.error)
        return sizes

    def motion(self, entries: int, length: float) -> Motion:
        """Along the error, `length` long."""
        components = torch.zeros(entries, dtype=torch.float64)
        components[torch.from_numpy(self.coordinates)] = torch.from_numpy(self.error / np.linalg.norm(self.error))
        return Motion(length, components)


class Confirmer:
    """Takes suspects to J.

    Args:
        directions: evaluates J along directions.
        sampler_of: gives the sampler of a parameter's single coordinates.
        trial: the gradients on trial, finite, by position.
        verified: the verified ones.
        noise: of J.
        tolerance: the largest relative error that passes.
    """

    def __init__(
        self,
        directions: Directions,
        sampler_of: Callable[[int], Sampler],
        trial: Mapping[int, Floats],
        verified: Mapping[int, Floats],
        noise: Noise,
        tolerance: float,
    ) -> None:
        self._directions, self._sampler_of = directions, sampler_of
        self._trial, self._verified = trial, verified
        self._noise, self._tolerance = noise, tolerance
        self._sizes = directions.sizes

    def confirmed(self, suspects: Mapping[int, Suspect]) -> set[int]:
        """The positions of those that J says are wrong."""
        ranked = sorted(suspects, key=lambda position: self._signal(position, suspects[position]))
        found: set[int] = set()
        for block in np.array_split(np.array(ranked, dtype=np.int64), BLOCKS) if len(ranked) > BLOCKS else ranked:
            members = [int(position) for position in np.atleast_1d(block)]
            if self._is_wrong({position: suspects[position] for position in members}):
                found.update(members)
            elif len(members) > 1:
                found.update(p for p in members[-SINGLE:] if self._is_wrong({p: suspects[p]}))
        return found

    def worst(self, suspects: Mapping[int, Suspect]) -> list[tuple[int, int]]:
        """Where a single coordinate shows best what is wrong: position, and place among the suspect's coordinates."""
        ranked = sorted(suspects, key=lambda position: -self._signal(position, suspects[position]))[:COORDINATES]
        each = COORDINATES // max(len(ranked), 1)
        return [
            (position, int(k))
            for position in ranked
            for k in np.argsort(-np.abs(suspects[position].error), kind="stable")[:each]
        ]

    def single(self, position: int, coordinates: Indices, error: Floats) -> EntryResults:
        """What differences of J say of single coordinates whose gradient is off by `error`."""
        values = self._trial[position][coordinates]
        size = np.full(len(values), self._sizes[position])
        unit = np.minimum(16 * RESOLVED * roundoff_of(self._noise) / np.abs(error), FURTHEST * size)
        sampler = self._sampler_of(position)

        def at_coordinates(which: Indices, steps: Floats) -> Samples:
            return sampler(coordinates[which], steps)

        return judge_each(entry_check_of(at_coordinates, values, unit, size, self._noise, self._tolerance))

    def _is_wrong(self, block: Mapping[int, Suspect]) -> bool:
        """Whether J's slope through all of these says that each of them is wrong, by as much as was seen."""
        signals = {position: self._signal(position, suspect) for position, suspect in block.items()}
        weakest = min(signals.values())
        direction = {
            position: suspect.motion(
                len(self._trial[position]), self._length(position, suspect) * weakest / signals[position]
            )
            for position, suspect in block.items()
        }
        step = max(suspect.certificate.step for suspect in block.values())
        results = self._judged(direction, max(step, RESOLVED / 8 * roundoff_of(self._noise) / weakest))
        predicted = slope(direction, self._verified)
        borne_out = abs(results.numeric[0] - predicted) <= weakest / 2
        resolved = weakest > ACCUSATION * results.error_bar[0]
        return bool(resolved and borne_out and contradicts(results, slope(direction, self._trial)))

    def _judged(self, direction: Direction, step: float) -> EntryResults:
        reach = min(
            self._sizes[position] / (abs(scale) * float(components.abs().max()))
            for position, (scale, components) in direction.items()
        )
        sampler = self._directions.sampler([direction])
        unit = np.array([min(16 * step, FURTHEST * reach)])
        analytic = np.array([slope(direction, self._trial)])
        return judge_each(entry_check_of(sampler, analytic, unit, np.array([reach]), self._noise, self._tolerance))

    def _length(self, position: int, suspect: Suspect) -> float:
        """As far as the random directions have moved the tensor."""
        return suspect.certificate.scale * float(np.sqrt(len(self._trial[position])))

    def _signal(self, position: int, suspect: Suspect) -> float:
        """How far apart the slopes on trial and verified are along a motion of that length."""
        return float(np.linalg.norm(suspect.error)) * self._length(position, suspect)
