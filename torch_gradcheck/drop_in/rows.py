"""The rows of a Jacobian: the quantities of the outputs that are differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.drop_in.columns import partners
from torch_gradcheck.drop_in.inputs import real_numbers
from torch_gradcheck.objective.perturbation import real_view


class Rows(Protocol):
    """M real quantities ⟨v, y⟩, each of one output y.

    Attributes:
        owners: shape (M,), the position of the output.
        partner: shape (M,), the row of the other part of the same complex number; itself for a real one.
    """

    owners: Indices
    partner: Indices

    def cotangent(self, row: int, output: Tensor) -> Tensor:
        """v of a row, of the shape and dtype of its output."""
        ...

    def of(self, values: Floats) -> Floats:
        """From all real numbers in the outputs to the quantities, shape (M,)."""
        ...


class EveryEntry:
    """One row for each real number in the outputs: a complex entry has two, its real and its imaginary part."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        counts = _counts(outputs)
        self.owners = np.repeat(np.arange(len(outputs)), counts)
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        pairs = zip(self._first, outputs, strict=False)
        self.partner = np.concatenate([first + partners(output) for first, output in pairs])
        self._shapes = [(*output.shape, 2) if output.is_complex() else tuple(output.shape) for output in outputs]

    def cotangent(self, row: int, output: Tensor) -> Tensor:
        """See `Rows.cotangent`."""
        v = torch.zeros(output.shape, dtype=output.dtype, device=output.device)
        real_view(v).view(-1)[self._coordinate(row)] = 1.0
        return v

    def of(self, values: Floats) -> Floats:
        """See `Rows.of`."""
        return values

    def index(self, row: int) -> tuple[int, ...]:
        """The index of the entry in its output; of a complex one 0 or 1 at the end, for its part."""
        shape = self._shapes[self.owners[row]]
        return tuple(int(k) for k in np.unravel_index(self._coordinate(row), shape)) if shape else ()

    def _coordinate(self, row: int) -> int:
        return int(row - self._first[self.owners[row]])


class RandomRows:
    """One row for each output that has entries, v signed and of sizes between ½ and 3/2."""

    def __init__(self, outputs: Sequence[Tensor], seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        counts = _counts(outputs)
        first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.owners = np.flatnonzero(counts)
        self.partner = np.arange(len(self.owners))
        self._v = [_random(outputs[int(k)], generator) for k in self.owners]
        self._parts = [slice(first[k], first[k + 1]) for k in self.owners]

    def cotangent(self, row: int, output: Tensor) -> Tensor:  # noqa: ARG002 - the shape is known
        """See `Rows.cotangent`."""
        return self._v[row]

    def of(self, values: Floats) -> Floats:
        """See `Rows.of`."""
        pairs = zip(self._v, self._parts, strict=True)
        return np.array([float(real_numbers(v) @ values[part]) for v, part in pairs])


def vector(outputs: Sequence[Tensor]) -> Floats:
    """All real numbers in the outputs, in the order of `EveryEntry`."""
    return np.concatenate([real_numbers(output) for output in outputs]) if outputs else np.empty(0)


def _counts(outputs: Sequence[Tensor]) -> list[int]:
    return [output.numel() * (2 if output.is_complex() else 1) for output in outputs]


def _random(output: Tensor, generator: torch.Generator) -> Tensor:
    v = torch.zeros(output.shape, dtype=output.dtype, device=output.device)
    real = real_view(v)
    draws = torch.rand((2, *real.shape), generator=generator, dtype=torch.float64)
    real.copy_((0.5 + draws[0]) * torch.where(draws[1] < 0.5, -1.0, 1.0))
    return v
