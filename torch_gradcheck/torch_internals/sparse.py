"""The parts of a sparse COO tensor as it stores them, also where places are given twice (not coalesced)."""

from __future__ import annotations

from torch import Tensor

from torch_gradcheck.torch_internals.missing import internal


def stored_values(tensor: Tensor) -> Tensor:
    """The values of a COO tensor, shape (stored, *dense), sharing its memory."""
    values: Tensor = internal(tensor, "_values", "move the entries of a sparse tensor")()
    return values


def stored_indices(tensor: Tensor) -> Tensor:
    """The places of these values, shape (sparse dimensions, stored), int64."""
    indices: Tensor = internal(tensor, "_indices", "put the entries of a sparse tensor in their places")()
    return indices
