"""Confirms by differences of J that suspected entries are wrong: whole blocks first, then single entries.

The verified gradient names the suspects; only J may call them wrong. A block is a direction through the suspected
entries of one tensor or several, along their error: there the two slopes, on trial and verified, differ most.
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
from torch_gradcheck.methods.projected.slope_check import contradicts, entry_check_of, error_bar_at_unit_step
from torch_gradcheck.methods.projected.verify import Certificate
from torch_gradcheck.verdicts.entry_check import ACCUSATION, EntryResults
from torch_gradcheck.verdicts.judge import judge_each

BLOCKS = 4
"""The suspected tensors are divided into at most 4 blocks; a block is confirmed if every tensor of it is wrong."""

SINGLE = 8
"""How many tensors of a block that was not confirmed are then tried one by one, those with the largest error."""

COORDINATES = 2
"""How many wrong coordinates are confirmed one by one: both in one tensor, or one in each of two."""

LARGEST_MOVE = 0.25
"""No step moves a tensor or a coordinate by more than a quarter of its own size."""

RESOLVED = 256.0
"""At the third step of a single entry's ladder, its error is this many times the error bar of the difference."""


@dataclass(frozen=True)
class Suspect:
    """A tensor whose gradient on trial differs from the verified one.

    Attributes:
        coordinates: shape (W,), the flat coordinates where the two differ.
        error: shape (W,), verified gradient minus gradient on trial.
        certificate: of the verified gradient.
    """

    coordinates: Indices
    error: Floats
    certificate: Certificate

    def sizes(self, entries: int) -> Floats:
        """|error| at every coordinate of the tensor, shape (entries,); 0 where the gradients agree."""
        sizes = np.zeros(entries)
        sizes[self.coordinates] = np.abs(self.error)
        return sizes

    def motion(self, entries: int, length: float) -> Motion:
        """The motion of the tensor's `entries` coordinates along the error; its 2-norm is `length`."""
        components = torch.zeros(entries, dtype=torch.float64)
        components[torch.from_numpy(self.coordinates)] = torch.from_numpy(self.error / np.linalg.norm(self.error))
        return Motion(length, components)


class Confirmer:
    """Confirms by differences of J which suspects are wrong.

    Args:
        directions: evaluates J along directions.
        sampler_of: maps a parameter's position to the sampler of its single coordinates.
        on_trial: the gradients on trial, finite, by position.
        verified: the verified gradients, by position.
        noise: of J.
        tolerance: the largest relative error that passes.
    """

    def __init__(
        self,
        directions: Directions,
        sampler_of: Callable[[int], Sampler],
        on_trial: Mapping[int, Floats],
        verified: Mapping[int, Floats],
        noise: Noise,
        tolerance: float,
    ) -> None:
        self._directions, self._sampler_of = directions, sampler_of
        self._on_trial, self._verified = on_trial, verified
        self._noise, self._tolerance = noise, tolerance
        self._sizes = directions.sizes

    def confirmed(self, suspects: Mapping[int, Suspect]) -> set[int]:
        """The positions of the suspects whose gradient J contradicts."""
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
        """The `COORDINATES` with the largest errors: position in θ, and place k in the suspect's `coordinates`."""
        ranked = sorted(suspects, key=lambda position: -self._signal(position, suspects[position]))[:COORDINATES]
        each = COORDINATES // max(len(ranked), 1)
        return [
            (position, int(k))
            for position in ranked
            for k in np.argsort(-np.abs(suspects[position].error), kind="stable")[:each]
        ]

    def single(self, position: int, coordinates: Indices, error: Floats) -> EntryResults:
        """The results of differences of J along single coordinates of one parameter.

        Args:
            position: of the parameter in θ.
            coordinates: shape (K,), flat.
            error: shape (K,), verified gradient minus gradient on trial.
        """
        analytic = self._on_trial[position][coordinates]
        size = np.full(len(analytic), self._sizes[position])
        unit = np.minimum(16 * RESOLVED * error_bar_at_unit_step(self._noise) / np.abs(error), LARGEST_MOVE * size)
        sampler = self._sampler_of(position)

        def at_coordinates(which: Indices, steps: Floats) -> Samples:
            return sampler(coordinates[which], steps)

        return judge_each(entry_check_of(at_coordinates, analytic, unit, size, self._noise, self._tolerance))

    def _is_wrong(self, block: Mapping[int, Suspect]) -> bool:
        """Whether J's slope along the errors of these tensors is the verified one and contradicts the one on trial.

        Each tensor moves so far that its two slopes differ by as much as those of the weakest tensor. All weigh alike
        then, and one tensor that is right after all shows in the sum.
        """
        signals = {position: self._signal(position, suspect) for position, suspect in block.items()}
        weakest = min(signals.values())
        direction = {
            position: suspect.motion(
                len(self._on_trial[position]), self._length(position, suspect) * weakest / signals[position]
            )
            for position, suspect in block.items()
        }
        step = max(suspect.certificate.step for suspect in block.values())
        results = self._judged(direction, max(step, RESOLVED / 8 * error_bar_at_unit_step(self._noise) / weakest))
        predicted = slope(direction, self._verified)
        as_predicted = abs(results.numeric[0] - predicted) <= weakest / 2
        resolved = weakest > ACCUSATION * results.error_bar[0]
        return bool(resolved and as_predicted and contradicts(results, slope(direction, self._on_trial)))

    def _judged(self, direction: Direction, step: float) -> EntryResults:
        reach = min(
            self._sizes[position] / (abs(scale) * float(components.abs().max()))
            for position, (scale, components) in direction.items()
        )
        sampler = self._directions.sampler([direction])
        unit = np.array([min(16 * step, LARGEST_MOVE * reach)])
        analytic = np.array([slope(direction, self._on_trial)])
        return judge_each(entry_check_of(sampler, analytic, unit, np.array([reach]), self._noise, self._tolerance))

    def _length(self, position: int, suspect: Suspect) -> float:
        """The 2-norm of the tensor's motion at a step of 1 along the random directions."""
        return suspect.certificate.scale * float(np.sqrt(len(self._on_trial[position])))

    def _signal(self, position: int, suspect: Suspect) -> float:
        """How far apart the two slopes, on trial and verified, are along a motion of that 2-norm."""
        return float(np.linalg.norm(suspect.error)) * self._length(position, suspect)
