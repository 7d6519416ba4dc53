"""Tensors that are no parameters and are on trial all the same: of the batch, captured by a closure, or arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        aliases: the names of the other places that it is at.
    """

    name: str
    tensor: torch.Tensor
    role: Role
    aliases: tuple[str, ...] = ()


def variables_in(name: str, value: Any, role: Role) -> list[Variable]:
    """The distinct tensors in a nested structure that require a gradient, each under the paths to it.

    Args:
        name: of the structure; the paths go on from it.
        value: the structure.
        role: of its tensors.
    """
    found = [Variable(name + path, tensor, role) for path, tensor in tensors_in(value) if tensor.requires_grad]
    return distinct(found)


def distinct(variables: Sequence[Variable]) -> list[Variable]:
    """Each tensor once, in the order of the first names; its other names are its aliases."""
    found: dict[int, Variable] = {}
    for each in variables:
        first = found.get(id(each.tensor))
        also = () if first is None else (*first.aliases, each.name, *each.aliases)
        found[id(each.tensor)] = each if first is None else replace(first, aliases=also)
    return list(found.values())


def objects_of(variables: Sequence[Variable]) -> list[torch.Tensor]:
    """The tensors of these variables."""
    return [variable.tensor for variable in variables]
