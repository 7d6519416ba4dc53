"""Confirms by differences of J that suspected entries are wrong: all suspected tensors at once, then halves of them.

Another gradient names the suspects; only J may call them wrong. It is differenced along the errors of several tensors
together: there the two slopes, on trial and verified, differ most, and a few evaluations of J settle it for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import COARSE, Estimates, Ladder
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.directional.motions import Direction, Motion
from torch_gradcheck.methods.directional.slope_check import (
    SHORT,
    SMOOTH,
    entry_check_of,
    error_bar_at_unit_step,
)
from torch_gradcheck.verdicts.entry_check import CONTRADICTION, EntryCheck, Outcome
from torch_gradcheck.verdicts.judge import SECOND_LADDER
from torch_gradcheck.verdicts.refine import on_ladder, refined

MOST_TRIED = 24
"""How many directions are tried at most; suspects that none of them confirmed are left to the caller."""

LARGEST_MOVE = 0.25
"""No step moves a tensor by more than a quarter of its own size."""

RESOLVED = 256.0
"""At the third step of a ladder, the error of the weakest tensor is this many times the error bar of the difference."""


ONLY = np.zeros(1, dtype=np.int64)
"""The index of the one function that is differentiated, J along one direction."""


@dataclass(frozen=True)
class Suspect:
    """A tensor whose gradient on trial differs from a verified one.

    Attributes:
        coordinates: shape (W,), the flat coordinates where the two differ.
        on_trial, verified: shape (W,), both gradients there, finite.
        entries: the number of the tensor's coordinates.
        length: the 2-norm of the tensor's motion at a step of 1 along a direction.
        step: one at which J is smooth along such a direction; None where none is known, and all have to be tried.
    """

    coordinates: Indices
    on_trial: Floats
    verified: Floats
    entries: int
    length: float
    step: float | None

    @property
    def error(self) -> Floats:
        """Verified gradient minus gradient on trial, shape (W,)."""
        return self.verified - self.on_trial

    @property
    def signal(self) -> float:
        """How far apart the two slopes, on trial and verified, are along the motion at a step of 1."""
        return float(np.linalg.norm(self.error)) * self.length

    def sizes(self) -> Floats:
        """|error| at every coordinate of the tensor, shape (entries,); 0 where the gradients agree."""
        sizes = np.zeros(self.entries)
        sizes[self.coordinates] = np.abs(self.error)
        return sizes

    def motion(self, length: float) -> Motion:
        """The motion of the tensor's coordinates along the error; its 2-norm is `length`."""
        components = torch.zeros(self.entries, dtype=torch.float64)
        components[torch.from_numpy(self.coordinates)] = torch.from_numpy(self._along)
        return Motion(length, components)

    def slopes(self, length: float) -> tuple[float, float]:
        """The slopes of J along that motion by both gradients, on trial and verified."""
        return length * float(self.on_trial @ self._along), length * float(self.verified @ self._along)

    def slope_of(self, gradient: Floats, length: float) -> float:
        """The slope along that motion by another gradient of shape (entries,)."""
        return length * float(gradient[self.coordinates] @ self._along)

    @property
    def _along(self) -> Floats:
        return np.asarray(self.error / np.linalg.norm(self.error))


@dataclass(frozen=True)
class Block:
    """Suspects that are tried together, each along its own error.

    Each tensor moves so far that its two slopes differ by as much as those of the weakest one. All weigh alike then,
    and one tensor that is right after all shows in the sum.

    Attributes:
        suspects: by position in θ.
        lengths: the 2-norm of each one's motion.
        weakest: how far apart the two slopes of each are.
    """

    suspects: Mapping[int, Suspect]
    lengths: Mapping[int, float]
    weakest: float

    @classmethod
    def of(cls, suspects: Mapping[int, Suspect]) -> Block:
        """The block of these suspects."""
        weakest = min(suspect.signal for suspect in suspects.values())
        lengths = {position: suspect.length * weakest / suspect.signal for position, suspect in suspects.items()}
        return cls(suspects, lengths, weakest)

    @property
    def direction(self) -> Direction:
        """All motions together."""
        return {position: suspect.motion(self.lengths[position]) for position, suspect in self.suspects.items()}

    @property
    def slopes(self) -> tuple[float, float]:
        """The slopes of J along the direction by both gradients, on trial and verified."""
        on_trial, verified = zip(*(s.slopes(self.lengths[p]) for p, s in self.suspects.items()), strict=True)
        return sum(on_trial), sum(verified)

    def slope_of(self, gradients: Mapping[int, AnalyticGradient]) -> float:
        """The slope along the direction by other gradients."""
        return sum(s.slope_of(gradients[p].values, self.lengths[p]) for p, s in self.suspects.items())


Excuse = Callable[[Block, Direction, float, float], bool]
"""Whether the gradient on trial is right beside θ, along a direction of a reach: at θ itself is a kink then. The last
argument is the step, in reaches, by which J's slope was found."""


class Confirmer:
    """Confirms by differences of J which suspects are wrong.

    Args:
        directions: evaluates J along directions.
        noise_along: maps positions in θ to the noise of J where these tensors move.
        tolerance: the largest relative error that passes.
        substitute: evaluates J as `directions` does, faster, for that first look; J itself then confirms what it finds.
            None without one.
        excuse: see `Excuse`; None where J is known to have no kink at θ.
    """

    def __init__(
        self,
        directions: Directions,
        noise_along: Callable[[Sequence[int]], Noise],
        tolerance: float,
        *,
        substitute: Callable[[], float] | None = None,
        excuse: Excuse | None = None,
    ) -> None:
        self._directions, self._noise_along, self._tolerance = directions, noise_along, tolerance
        self._substitute, self._excuse = substitute, excuse
        self._tried = 0

    def confirmed(self, suspects: Mapping[int, Suspect]) -> set[int]:
        """The positions of the suspects whose gradient J contradicts."""
        ranked = sorted(suspects, key=lambda position: suspects[position].signal)
        return set(self._confirmed(ranked, suspects))

    def _confirmed(self, ranked: Sequence[int], suspects: Mapping[int, Suspect]) -> list[int]:
        """The same, of suspects ranked by signal: those that one direction leaves open are tried in two halves."""
        if not ranked or self._tried >= MOST_TRIED:
            return []
        self._tried += 1
        if self._is_wrong(Block.of({position: suspects[position] for position in ranked})):
            return list(ranked)
        if len(ranked) == 1:
            return []
        middle = len(ranked) // 2
        return self._confirmed(ranked[middle:], suspects) + self._confirmed(ranked[:middle], suspects)

    def _is_wrong(self, block: Block) -> bool:
        """Whether J's slope along the errors of these tensors is the verified one and contradicts the one on trial."""
        direction, reach = block.direction, self._directions.reach(block.direction)
        noise = self._noise_along(list(block.suspects))
        first = self._check(block, direction, reach, noise)
        estimates, outcome = refined(first, ONLY, first.unit)
        if not _contradicts(block, estimates, outcome):
            return False
        found = float(estimates.step[0] * first.unit[0])
        second = replace(
            first, sampler=self._directions.sampler([direction]), at_zero=lambda: noise.at_zero, ladder=SHORT
        )
        unit = SECOND_LADDER * min(16 * found, LARGEST_MOVE * reach)
        if not _contradicts(block, *on_ladder(second, ONLY, np.array([unit]))):
            return False
        return self._excuse is None or not self._excuse(block, direction, reach, found / reach)

    def _steps(self, block: Block, reach: float, noise: Noise) -> tuple[float, Ladder]:
        """The largest step of a first look along the direction, and the ladder down from it.

        All steps from a quarter of the size down; or a few around one at which J is smooth, as far as is known,
        and which is so large that noise does not hide the weakest tensor.
        """
        known = [suspect.step for suspect in block.suspects.values() if suspect.step is not None]
        if not known:
            return LARGEST_MOVE * reach, COARSE
        step = max(*known, RESOLVED / 8 * error_bar_at_unit_step(noise) / block.weakest)
        return min(16 * step, LARGEST_MOVE * reach), SHORT

    def _check(self, block: Block, direction: Direction, reach: float, noise: Noise) -> EntryCheck:
        largest, ladder = self._steps(block, reach, noise)
        if self._substitute is not None:
            noise = noise._replace(at_zero=self._substitute())  # with its own roundoff
        return entry_check_of(
            self._directions.sampler([direction], self._substitute),
            np.array([block.slopes[0]]),
            np.array([largest]),
            np.array([reach]),
            noise,
            self._tolerance,
            ladder,
        )


def _contradicts(block: Block, estimates: Estimates, outcome: NDArray[np.int8]) -> bool:
    """Whether J's slope is resolved, as the verified gradient has it, and no slope of a kink."""
    on_trial, verified = block.slopes
    as_verified = abs(estimates.central[0] - verified) <= block.weakest / 2
    resolved = block.weakest > CONTRADICTION * estimates.error_bar[0]
    # A kink of one tensor must not hide in the error of many.
    of_one = SMOOTH * block.weakest + estimates.jump_error_bar[0]
    smooth = abs(estimates.jump[0]) <= min(SMOOTH * abs(estimates.central[0] - on_trial), of_one)
    return bool(outcome[0] == Outcome.MISMATCH and as_verified and resolved and smooth)
