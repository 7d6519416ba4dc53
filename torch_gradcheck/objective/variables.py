"""Tensors that are no parameters and are on trial all the same: of the batch, captured by a closure, or arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.reporting.facts import Role


@dataclass(frozen=True)
class Variable:
    """A tensor of the caller's that is part of θ; it is lent as parameters are, its object standing for a copy.

    Attributes:
        name: of its row, after its place, such as `batch[0]` or `batch['x']`.
        tensor: the caller's own object.
        role: what it is to J.
    """

    name: str
    tensor: torch.Tensor
    role: Role


def variables_in(name: str, value: Any, role: Role) -> list[Variable]:
    """The distinct tensors in a nested structure that require a gradient, each under the first path to it.

    Args:
        name: of the structure; the paths go on from it.
        value: the structure.
        role: of its tensors.
    """
    first: dict[int, Variable] = {}
    for path, tensor in tensors_in(value):
        if tensor.requires_grad:
            first.setdefault(id(tensor), Variable(name + path, tensor, role))
    return list(first.values())


def objects_of(variables: Sequence[Variable]) -> list[torch.Tensor]:
    """The tensors of these variables."""
    return [variable.tensor for variable in variables]
