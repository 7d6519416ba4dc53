"""Memory that depends on θ in one evaluation of J, by storage: how it was made, and where its graph was cut."""

from __future__ import annotations

from enum import Enum, auto

import torch

from torch_gradcheck.objective.held_values import Cut
from torch_gradcheck.torch_internals.tensors import storage_key, weak_storage


class Made(Enum):
    """How what lies in a storage came about."""

    THETA = auto()
    """A tensor that is on trial: the graph begins at it, whoever writes to it."""
    LEAF = auto()
    """Another tensor that the graph begins at."""
    GRAPH = auto()
    """Computed with a graph."""
    CUT = auto()
    """Computed without one."""
    CUT_LEAF = auto()
    """That of a leaf, and since then computed without a graph, as the weights of a target network are."""
    OF_FUNCTION = auto()
    """Computed without one by a custom Function or in a backward: never held."""


LEAVES = frozenset([Made.THETA, Made.LEAF])

OTHER_LEAVES = frozenset([Made.LEAF, Made.CUT_LEAF])


class MemoryOfTheta:
    """What is known of the memory of tensors; nothing of sparse ones."""

    def __init__(self) -> None:
        self._made: dict[int, Made] = {}
        self._cuts: dict[int, Cut] = {}
        self._alive: dict[int, object] = {}  # weak references: no storage takes the place of another

    def of(self, tensor: torch.Tensor) -> Made | None:
        """How it was made; None where it does not depend on θ."""
        return self._made.get(storage_key(tensor)) if tensor.layout is torch.strided else None

    def mark(self, tensor: torch.Tensor, made: Made) -> None:
        """Notes how it was made."""
        if tensor.layout is not torch.strided:
            return
        key = storage_key(tensor)
        if key not in self._alive:
            self._alive[key] = weak_storage(tensor)
        self._made[key] = made

    def cut_through(self, tensor: torch.Tensor, cut: Cut) -> None:
        """Notes where its graph was cut, which may be elsewhere than before."""
        if tensor.layout is torch.strided:
            self._cuts[storage_key(tensor)] = cut

    def last_cut(self, tensor: torch.Tensor) -> Cut | None:
        """Where its graph was cut last; None where nobody noted it. The tensor is strided."""
        return self._cuts.get(storage_key(tensor))
