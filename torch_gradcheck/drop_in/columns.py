"""The columns of a Jacobian: the directions in which the inputs are moved."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.drop_in.inputs import Input, real_numbers
from torch_gradcheck.objective.perturbation import MovedCoordinate, coordinate_views, real_view, sizes


class Columns(Protocol):
    """N directions in the inputs.

    Attributes:
        unit: shape (N,), what a step of 1 is to be measured by: max(1, |x|).
        scale: shape (N,), the length over which the function may well vary.
        owners: shape (N,), the position of the input that moves.
        partner: shape (N,), the column of the other part of the same complex number; itself for a real one.
    """

    unit: Floats
    scale: Floats
    owners: Indices
    partner: Indices

    def at(self, column: int, step: float) -> AbstractContextManager[float]:
        """The inputs moved by a step inside the block, which gets the step really taken."""
        ...

    def slopes(self, gradients: Sequence[Floats]) -> Floats:
        """From the gradient of each input along its coordinates to the slopes along the columns, shape (N,)."""
        ...

    def tangent(self, column: int) -> Tensor:
        """The direction itself, a tensor like the memory of the input that moves."""
        ...


class EveryCoordinate:
    """One column for each real number in the inputs."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._memories = [each.memory for each in inputs]
        counts = [real_view(memory).numel() for memory in self._memories]
        values = [_finite(np.abs(real_numbers(memory))) for memory in self._memories]
        self.owners = np.repeat(np.arange(len(inputs)), counts)
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.partner = np.concatenate(
            [first + partners(m) for first, m in zip(self._first, self._memories, strict=False)]
        )
        self.unit = np.maximum(1.0, np.concatenate(values))
        self.scale = np.concatenate([np.maximum(each, _typical(each)) for each in values])

    def at(self, column: int, step: float) -> MovedCoordinate:
        """See `Columns.at`."""
        return MovedCoordinate(self._view(self._memories[self.owners[column]], column), step)

    def slopes(self, gradients: Sequence[Floats]) -> Floats:
        """See `Columns.slopes`."""
        return np.concatenate(gradients)

    def tangent(self, column: int) -> Tensor:
        """See `Columns.tangent`."""
        tangent = torch.zeros_like(self._memories[self.owners[column]])
        self._view(tangent, column).fill_(1.0)
        return tangent

    def index(self, column: int) -> tuple[int, ...]:
        """The index of the entry in the memory of its input; of a complex one 0 or 1 at the end, for its part."""
        shape = tuple(real_view(self._memories[self.owners[column]]).shape)
        return tuple(int(k) for k in np.unravel_index(self._coordinate(column), shape)) if shape else ()

    def _view(self, tensor: Tensor, column: int) -> Tensor:
        return next(coordinate_views(tensor, np.array([self._coordinate(column)])))

    def _coordinate(self, column: int) -> int:
        return int(column - self._first[self.owners[column]])


class RandomColumns:
    """One random direction through each input: signed, its components between half the size of an entry and 3/2."""

    def __init__(self, inputs: Sequence[Input], seed: int) -> None:
        self._memories = [each.memory for each in inputs]
        generator = torch.Generator("cpu").manual_seed(seed)
        self._velocities = [_signed_sizes(memory, generator) for memory in self._memories]
        self.owners = self.partner = np.arange(len(inputs))
        self.unit = self.scale = np.ones(len(inputs))

    def at(self, column: int, step: float) -> _MovedAlong:
        """See `Columns.at`."""
        return _MovedAlong(self._memories[column], self._velocities[column], step)

    def slopes(self, gradients: Sequence[Floats]) -> Floats:
        """See `Columns.slopes`."""
        pairs = zip(gradients, self._velocities, strict=True)
        return np.array([float(gradient @ real_numbers(velocity)) for gradient, velocity in pairs])

    def tangent(self, column: int) -> Tensor:
        """See `Columns.tangent`."""
        return self._velocities[column]


class _MovedAlong:
    """memory + step · velocity inside the block; what it held, by assignment, after it."""

    def __init__(self, memory: Tensor, velocity: Tensor, step: float) -> None:
        self._memory, self._velocity, self._step = memory, velocity, step
        self._before = memory.clone()

    def __enter__(self) -> float:
        try:
            self._memory.add_(self._velocity, alpha=self._step)
        except BaseException:
            self._memory.copy_(self._before)
            raise
        return self._step

    def __exit__(self, *exception: object) -> None:
        self._memory.copy_(self._before)


def _finite(values: Floats) -> Floats:
    """The same with 1 in place of what is not finite, and which no step moves."""
    return np.where(np.isfinite(values), values, 1.0)


def _signed_sizes(memory: Tensor, generator: torch.Generator) -> Tensor:
    finite = real_view(memory).isfinite()
    real = torch.where(finite, real_view(memory), 0.0)
    draws = torch.rand((2, *real.shape), generator=generator, dtype=torch.float64)
    signed = ((0.5 + draws[0]) * torch.where(draws[1] < 0.5, -1.0, 1.0)).to(real)
    velocity = signed * sizes(real) * finite
    return torch.view_as_complex(velocity) if memory.is_complex() else velocity


def partners(tensor: Tensor) -> Indices:
    """For each real number of a tensor that of the other part of the same complex number; itself for a real one."""
    numbers = np.arange(real_view(tensor).numel())
    return numbers ^ 1 if tensor.is_complex() else numbers


def _typical(values: Floats) -> float:
    """The root mean square, 1 where all are 0."""
    return float(np.sqrt(np.mean(values**2))) if np.any(values) else 1.0
