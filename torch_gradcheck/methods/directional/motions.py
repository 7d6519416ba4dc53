"""What a direction in θ is: the motion of each parameter; given by its components, or drawn at random by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Motion(NamedTuple):
    """One parameter's part of a direction: `scale` times `components`, a tensor of shape (coordinates,)."""

    scale: float
    components: Tensor


Direction = Mapping[int, Motion]
"""Maps a parameter's position in θ to its motion; other parameters stand still."""


class Drawn(Mapping[int, Motion]):
    """A random direction, whose components are drawn when they are first asked for, and kept until they are forgotten.

    Args:
        number: which direction.
        scales: by position in θ, how far a step of 1 moves a coordinate of that tensor.
        draw: gives the components of a direction of a number at a position.
    """

    def __init__(self, number: int, scales: Mapping[int, float], draw: Callable[[int, int], Tensor]) -> None:
        self.number, self.scales, self._draw = number, scales, draw
        self._components: dict[int, Tensor] = {}

    def __getitem__(self, position: int) -> Motion:
        if position not in self._components:
            self._components[position] = self._made(position)
        return Motion(self.scales[position], self._components[position])

    def __iter__(self) -> Iterator[int]:
        return iter(self.scales)

    def __len__(self) -> int:
        return len(self.scales)

    def _made(self, position: int) -> Tensor:
        return self._draw(self.number, position)

    def forget(self) -> None:
        """Lets go of the components; they are drawn again if they are asked for."""
        self._components.clear()


class InSizes(Mapping[int, Motion]):
    """A random direction in which every entry moves by the size of its own; nothing of it is kept.

    Args:
        random: gives the signs, and how many sizes each entry moves.
        in_sizes: multiplies components by the size of every entry of the parameter at a position.
    """

    def __init__(self, random: Drawn, in_sizes: Callable[[int, Tensor], Tensor]) -> None:
        self.random, self._in_sizes = random, in_sizes

    def __getitem__(self, position: int) -> Motion:
        scale, components = self.random[position]
        self.random.forget()
        return Motion(scale, self._in_sizes(position, components))

    def __iter__(self) -> Iterator[int]:
        return iter(self.random)

    def __len__(self) -> int:
        return len(self.random)


class Part(Drawn):
    """A range of the components of one tensor in a random direction, without some of them; nothing else moves.

    Where only n of N components are left, they move √(N/n) times as far, so that roundoff weighs less.

    Args:
        whole: the random direction.
        position: of the tensor in θ.
        begin, end: the range.
        without: flat coordinates that do not move.
    """

    def __init__(self, whole: Drawn, position: int, begin: int, end: int, without: Sequence[int]) -> None:
        self.whole, self.position, self.begin, self.end, self.without = whole, position, begin, end, tuple(without)
        every = whole[position].components
        left_out = every[[k for k in self.without if begin <= k < end]]
        self.moving = int(torch.count_nonzero(every[begin:end]) - torch.count_nonzero(left_out))
        self.further = float(np.sqrt(len(every) / max(self.moving, 1)))
        super().__init__(whole.number, {position: whole.scales[position] * self.further}, whole._draw)

    def _made(self, position: int) -> Tensor:
        every = self.whole[position].components
        components = torch.zeros_like(every)
        components[self.begin : self.end] = every[self.begin : self.end]
        components[list(self.without)] = 0
        return components
