"""θ perturbed: one coordinate, or all of it along a random direction; moved inside a block, and put back after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from torch_gradcheck.arrays import Indices
from torch_gradcheck.precision.dtypes import are_finite


def real_view(tensor: torch.Tensor) -> torch.Tensor:
    """The real numbers that a tensor holds, sharing its memory.

    A complex tensor gets a last dimension of length 2, (real, imaginary). One that is lazily conjugated has no such
    view: torch raises RuntimeError, and `tensor.resolve_conj()` is a copy that has one.
    """
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def infinite_coordinates(tensor: torch.Tensor) -> Indices:
    """Flat coordinates that hold NaN or infinity: masks are filled with −∞, which no step moves."""
    numbers = real_view(tensor.detach().resolve_conj())
    known = are_finite(numbers)
    if known.all():
        return np.empty(0, dtype=np.int64)
    return np.asarray((~known).reshape(-1).nonzero().reshape(-1).cpu().numpy(), dtype=np.int64)


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
    """

    def __init__(self, parameters: Sequence[torch.Tensor], velocities: Sequence[torch.Tensor]) -> None:
        self._tensors = [real_view(parameter.data) for parameter in parameters]
        self._velocities = velocities
        self._before = [tensor.clone() for tensor in self._tensors]

    def at(self, distance: float, staying: Collection[int] = ()) -> _At:
        """θ + distance · direction inside the block; θ, by assignment, after it.

        Args:
            distance: how far.
            staying: positions among the parameters of those that do not move.
        """
        return _At(self, distance, staying)

    def move(self, distance: float, staying: Collection[int] = ()) -> None:
        """From anywhere to θ + distance · direction; the parameters at these positions to θ."""
        moving = zip(self._tensors, self._before, self._velocities, strict=True)
        for position, (tensor, before, velocity) in enumerate(moving):
            torch.add(before, velocity, alpha=0.0 if position in staying else distance, out=tensor)

    def put_back(self) -> None:
        """From anywhere to θ."""
        for tensor, before in zip(self._tensors, self._before, strict=True):
            tensor.copy_(before)

    def tangent(self, position: int, like: torch.Tensor) -> torch.Tensor:
        """How far a step of 1 moves every entry of the parameter at a position, in the form of the parameter `like`."""
        velocity = self._velocities[position]
        return torch.view_as_complex(velocity) if like.is_complex() else velocity

    def slope(self, gradients: Sequence[torch.Tensor | None]) -> float:
        """⟨gradient, direction⟩: the slope along it of a function with these gradients; None is zeros."""
        return sum([self.slope_through(position, gradient) for position, gradient in enumerate(gradients)])

    def slope_through(self, position: int, gradient: torch.Tensor | None) -> float:
        """The part of the slope that is due to the parameter at this position."""
        if gradient is None:
            return 0.0
        return float((real_view(gradient.detach().resolve_conj()) * self._velocities[position]).sum())


class RandomDirection(Direction):
    """A direction in θ: every real number in it moves by ± its size, with signs drawn from `seed`.

    The size of a number is its absolute value, see `sizes`.

    Args:
        parameters: the tensors that make up θ, as they are now.
        seed: the same seed gives the same signs, on every device.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        super().__init__(parameters, [_velocity(real_view(each.data), generator) for each in parameters])


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


def _velocity(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    signs = torch.randint(0, 2, tensor.shape, generator=generator, device="cpu").to(tensor) * 2 - 1
    return signs * sizes(tensor)


def sizes(tensor: torch.Tensor) -> torch.Tensor:
    """|x| of every entry x; for a zero the root mean square of the tensor, and 1 where every entry is zero.

    NaN and infinity have size 0: they cannot move.
    """
    absolute = tensor.abs()
    finite = torch.isfinite(absolute)
    if not finite.all():
        of_finite = sizes(absolute[finite])
        return torch.zeros_like(absolute).masked_scatter(finite, of_finite)
    typical = absolute.square().mean().sqrt() if tensor.numel() else absolute.new_ones(())
    return torch.where(absolute > 0, absolute, torch.where(typical > 0, typical, torch.ones_like(typical)))
