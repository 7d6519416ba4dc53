"""θ perturbed: one coordinate, or all of it along a random direction; moved inside a block, and put back after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from torch_gradcheck.arrays import BLOCK, Indices
from torch_gradcheck.precision.dtypes import are_finite

PIECE = 2**16
"""Entries of a tensor that are moved at a time: half a megabyte in float64, which caches hold."""


def real_view(tensor: torch.Tensor) -> torch.Tensor:
    """The real numbers that a tensor holds, sharing its memory.

    A complex tensor gets a last dimension of length 2, (real, imaginary). One that is lazily conjugated has no such
    view: torch raises RuntimeError, and `tensor.resolve_conj()` is a copy that has one.
    """
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def infinite_coordinates(tensor: torch.Tensor) -> Indices:
    """Flat coordinates that hold NaN or infinity: masks are filled with −∞, which no step moves."""
    numbers = real_view(tensor.detach().resolve_conj()).reshape(-1)
    known = torch.cat([are_finite(block) for block in numbers.split(BLOCK)])
    if known.all():
        return np.empty(0, dtype=np.int64)
    return np.asarray((~known).nonzero().reshape(-1).cpu().numpy(), dtype=np.int64)


def coordinate_views(tensor: torch.Tensor, coordinates: Indices) -> Iterator[torch.Tensor]:
    """A 0-dim view of each coordinate, real, sharing the tensor's memory.

    Coordinates count the numbers of `real_view(tensor)` in C order: the imaginary part of the entry k is 2k + 1.
    """
    real = real_view(tensor)
    if not real.dim():
        yield from (real[()] for _ in coordinates)
        return
    axes = np.unravel_index(coordinates, tuple(real.shape))
    for index in zip(*(axis.tolist() for axis in axes), strict=True):
        yield real[index]


class MovedCoordinate:
    """θᵢ + step inside the block; θᵢ, by assignment of what it held, after it.

    The block gets the step that θᵢ really took in its precision, (θᵢ + step) − θᵢ. A class and not a generator, which
    an interrupt could leave behind, to put θᵢ back at some later time.

    Args:
        coordinate: θᵢ, a view of `coordinate_views`. A view of `.data` leaves the parameter's version counter alone:
            neither graphs nor the loan of the model notice the writes.
        step: by how much it is to move.
    """

    __slots__ = ("_before", "_coordinate", "_step")

    def __init__(self, coordinate: torch.Tensor, step: float) -> None:
        self._coordinate, self._step = coordinate, step
        self._before = coordinate.item()

    def __enter__(self) -> float:
        try:
            self._coordinate.fill_(self._before + self._step)
            return self._coordinate.item() - self._before
        except BaseException:
            self._coordinate.fill_(self._before)
            raise

    def __exit__(self, *exception: object) -> None:
        self._coordinate.fill_(self._before)


class Direction:
    """A direction in θ.

    Args:
        parameters: the tensors that make up θ, as they are now; complex ones move in both parts.
        velocities: of the `real_view` of each.
        before: what each of them holds now, to be read only, in its own dtype or another; None of one that is to be
            copied. None for all: all are copied.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        velocities: Sequence[torch.Tensor],
        before: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        self._tensors = [real_view(parameter.data) for parameter in parameters]
        self._velocities = velocities
        held = before or [None for _ in parameters]
        pairs = zip(self._tensors, held, strict=True)
        self._before = [tensor.clone() if x is None else real_view(x) for tensor, x in pairs]

    def at(self, distance: float, staying: Collection[int] = ()) -> _At:
        """θ + distance · direction inside the block; θ, by assignment, after it.

        Args:
            distance: how far.
            staying: positions among the parameters of those that do not move.
        """
        return _At(self, distance, staying)

    def move(self, distance: float, staying: Collection[int] = ()) -> None:
        """From anywhere to θ + distance · direction; the parameters at these positions to θ."""
        for position, (tensor, before) in enumerate(zip(self._tensors, self._before, strict=True)):
            factor = 0.0 if position in staying else distance
            for begin, x, out in pieces(before, tensor):
                there = x.to(tensor)
                torch.add(there, self._piece(position, begin, there), alpha=factor, out=out)

    def put_back(self) -> None:
        """From anywhere to θ."""
        for tensor, before in zip(self._tensors, self._before, strict=True):
            tensor.copy_(before)

    def tangent(self, position: int, like: torch.Tensor) -> torch.Tensor:
        """How far a step of 1 moves every entry of the parameter at a position, in the form of the parameter `like`."""
        velocity = self._velocity(position)
        return torch.view_as_complex(velocity) if like.is_complex() else velocity

    def slope(self, gradients: Sequence[torch.Tensor | None]) -> float:
        """⟨gradient, direction⟩: the slope along it of a function with these gradients; None is zeros."""
        return sum([self.slope_through(position, gradient) for position, gradient in enumerate(gradients)])

    def slope_through(self, position: int, gradient: torch.Tensor | None) -> float:
        """The part of the slope that is due to the parameter at this position."""
        if gradient is None:
            return 0.0
        return float((real_view(gradient.detach().resolve_conj()) * self._velocity(position)).sum())

    def _velocity(self, position: int) -> torch.Tensor:
        """Of the `real_view` of the parameter at a position, in its shape."""
        return self._velocities[position]

    def _piece(self, position: int, begin: int, before: torch.Tensor) -> torch.Tensor:
        """The velocity of a piece of a parameter, in the piece's shape, from its flat coordinate `begin` on.

        `before` is what the piece holds at θ.
        """
        velocity = self._velocity(position)
        return velocity if before.dim() != 1 else velocity.reshape(-1)[begin : begin + before.numel()]


class RandomDirection(Direction):
    """A direction in θ: every real number in it moves by ± its size, with signs drawn from `seed`.

    The size of a number is its absolute value, see `sizes`. Only the signs are kept, a byte each.

    Args:
        parameters: the tensors that make up θ, as they are now.
        seed: the same seed gives the same signs, on every device.
        before: as for `Direction`.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], seed: int, before: Sequence[torch.Tensor | None] | None = None
    ) -> None:
        super().__init__(parameters, (), before)
        generator = torch.Generator("cpu").manual_seed(seed)
        self._outward = [_outward(tensor, generator) for tensor in self._tensors]
        self._typical = [_typical_if_needed(tensor) for tensor in self._tensors]

    def _velocity(self, position: int) -> torch.Tensor:
        before = self._before[position].to(self._tensors[position])
        return self._piece(position, 0, before.reshape(-1)).view(before.shape)

    def _piece(self, position: int, begin: int, before: torch.Tensor) -> torch.Tensor:
        outward = self._outward[position][begin : begin + before.numel()].view(before.shape)
        typical = self._typical[position]
        size = before if typical is None else torch.copysign(sizes(before, typical), before)
        return torch.where(outward, size, -size)


class _At:
    """A class and not a generator, as `MovedCoordinate` is."""

    def __init__(self, direction: Direction, distance: float, staying: Collection[int]) -> None:
        self._direction, self._distance, self._staying = direction, distance, staying

    def __enter__(self) -> None:
        try:
            self._direction.move(self._distance, self._staying)
        except BaseException:
            self._direction.put_back()
            raise

    def __exit__(self, *exception: object) -> None:
        self._direction.put_back()


def _outward(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Whether each number moves away from 0; it moves forward or back by the toss of a coin. Shape (numbers,)."""
    outward, numbers = torch.empty(tensor.numel(), dtype=torch.bool, device=tensor.device), tensor.reshape(-1)
    for piece, number in zip(outward.split(BLOCK), numbers.split(BLOCK), strict=True):
        forward = torch.randint(0, 2, piece.shape, generator=generator, device="cpu")
        piece.copy_(forward.to(number.device) != torch.signbit(number))
    return outward


def _typical_if_needed(tensor: torch.Tensor) -> torch.Tensor | None:
    """The typical size of a tensor that has entries which are 0 or not finite; None where each moves by its own."""
    own = [bool((block.isfinite() & (block != 0)).all()) for block in tensor.reshape(-1).split(BLOCK)]
    return None if all(own) else typical_size(tensor)


def pieces(before: torch.Tensor, out: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Two tensors of one shape a piece at a time, with the flat coordinate that it begins at.

    Where they do not lie in memory in C order, both are given as they are.
    """
    if out.numel() <= PIECE or not (before.is_contiguous() and out.is_contiguous()):
        yield 0, before, out
        return
    for number, (x, y) in enumerate(zip(before.view(-1).split(PIECE), out.view(-1).split(PIECE), strict=True)):
        yield number * PIECE, x, y


def sizes(tensor: torch.Tensor, typical: torch.Tensor | None = None) -> torch.Tensor:
    """|x| of every entry x; for a zero the `typical_size` of the tensor, and 1 where every entry is zero.

    NaN and infinity have size 0: they cannot move.

    Args:
        tensor: of real numbers.
        typical: the typical size of the tensor that this is a piece of; None: of this one.
    """
    typical = typical_size(tensor) if typical is None else typical
    absolute = tensor.abs()
    size = torch.where(absolute > 0, absolute, torch.where(typical > 0, typical, torch.ones_like(typical)))
    finite = torch.isfinite(absolute)
    return size if finite.all() else torch.where(finite, size, torch.zeros_like(size))


def typical_size(tensor: torch.Tensor) -> torch.Tensor:
    """The root mean square of the entries that are finite, 0-dim; 0 without any."""
    total, count = tensor.new_zeros(()), 0
    for block in tensor.reshape(-1).split(BLOCK):
        finite = torch.isfinite(block)
        known = block if finite.all() else block[finite]
        total, count = total + known.abs().square().sum(), count + known.numel()
    return (total / count).sqrt() if count else total
