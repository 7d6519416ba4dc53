"""Directions by name, for other ranks: a random one by its number, another one by its components, sent once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.methods.directional.motions import Direction, Drawn, InSizes, Motion, Part

SPARSE = 0.5
"""Components are sent with their places where fewer than half of them are not 0."""


@dataclass(frozen=True)
class OfNumber:
    """A random direction."""

    number: int
    scales: Mapping[int, float]


@dataclass(frozen=True)
class OfSizes:
    """A random direction in the sizes of entries, see `InSizes`."""

    random: OfNumber


@dataclass(frozen=True)
class OfPart:
    """A part of a random direction; for its attributes see `Part`."""

    whole: OfNumber
    position: int
    begin: int
    end: int
    without: Sequence[int]


@dataclass(frozen=True)
class Kept:
    """A direction that the rank was given with its last share: its number among those that it was given in full."""

    number: int


class Components(NamedTuple):
    """Components of one tensor: all of them or, where `places` is not None, those that are not 0.

    Attributes:
        entries: how many there are.
        values: shape (entries,), or (places,).
        places: flat.
    """

    entries: int
    values: Floats
    places: Indices | None

    @classmethod
    def of(cls, components: Tensor) -> Components:
        """The components of a motion."""
        values = components.numpy(force=True)
        places = np.flatnonzero(values)
        if len(places) < SPARSE * len(values):
            return cls(len(values), values[places], places)
        return cls(len(values), values, None)

    @property
    def tensor(self) -> Tensor:
        """Shape (entries,)."""
        if self.places is None:
            return torch.from_numpy(self.values)
        values = np.zeros(self.entries, self.values.dtype)
        values[self.places] = self.values
        return torch.from_numpy(values)


InFull = Mapping[int, tuple[float, Components]]
"""A direction by its components: position in θ → scale, and components."""

Random = Callable[[int, Mapping[int, float]], Drawn]
"""Makes the random direction of a number and scales."""

Sized = Callable[[Drawn], InSizes]
"""Makes a random direction one in the sizes of entries."""

Name = OfNumber | OfSizes | OfPart | Kept | InFull


class Names:
    """What directions are called between the leader and another rank; each rank has one of its own.

    A direction that is given in full is kept by the rank until its next share, in which it may be called by a number.
    """

    def __init__(self) -> None:
        self._kept: dict[int, list[Direction]] = {}  # by rank; what this rank itself keeps is under 0
        self._whole: Drawn | None = None  # the last one of which a part was asked for

    def given(self, rank: int, directions: Sequence[Direction]) -> list[Name]:
        """The names by which a rank knows the directions of its next share."""
        kept = self._kept.get(rank, [])
        self._kept[rank] = [each for each in directions if not isinstance(each, Drawn | InSizes)]
        return [_name(each, kept) for each in directions]

    def called(self, names: Sequence[Name], random: Random, in_sizes: Sized) -> list[Direction]:
        """The directions of the present share; `random` draws those of a number, `in_sizes` makes others of them."""
        kept = self._kept.get(0, [])
        directions = [self._called(name, kept, random, in_sizes) for name in names]
        self._kept[0] = [each for each in directions if not isinstance(each, Drawn | InSizes)]
        return directions

    def _called(self, name: Name, kept: Sequence[Direction], random: Random, in_sizes: Sized) -> Direction:
        if isinstance(name, Kept):
            return kept[name.number]
        if isinstance(name, OfNumber):
            return random(name.number, name.scales)
        if isinstance(name, OfSizes):
            return in_sizes(random(name.random.number, name.random.scales))
        if isinstance(name, OfPart):
            return Part(self._whole_of(name.whole, random), name.position, name.begin, name.end, name.without)
        return {position: Motion(scale, components.tensor) for position, (scale, components) in name.items()}

    def _whole_of(self, name: OfNumber, random: Random) -> Drawn:
        whole = self._whole
        if whole is None or OfNumber(whole.number, whole.scales) != name:
            self._whole = whole = random(name.number, name.scales)
        return whole


def _name(direction: Direction, kept: Sequence[Direction]) -> Name:
    if isinstance(direction, Part):
        whole = OfNumber(direction.whole.number, direction.whole.scales)
        return OfPart(whole, direction.position, direction.begin, direction.end, direction.without)
    if isinstance(direction, Drawn):
        return OfNumber(direction.number, direction.scales)
    if isinstance(direction, InSizes):
        return OfSizes(OfNumber(direction.random.number, direction.random.scales))
    for number, each in enumerate(kept):
        if each is direction:
            return Kept(number)
    return {position: (scale, Components.of(components)) for position, (scale, components) in direction.items()}
