"""Tensors that are no parameters and are on trial all the same: of the batch, captured by a closure, or arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torch_gradcheck.borrowing.captures import Captures, captures_of
from torch_gradcheck.borrowing.reach import is_ordinary
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.torch_internals.autograd import hooks_of
from torch_gradcheck.torch_internals.tensors import is_wrapper


@dataclass(frozen=True)
class Variable:
    """A tensor of the caller's that is part of θ; it is lent as parameters are, its object standing for a copy.

    Attributes:
        name: of its row, after its place, such as `batch[0]` or `batch['x']`.
        tensor: the caller's own object; a stand-in for one that is not `lendable`, with its values and `.grad`.
        aliases: the names of the other places that it is at.
        role: what it is to J.
        stands_for: the caller's own object.
        is_leaf: whether that is a leaf, and keeps a `.grad`. What J is given in place of another one is no leaf either.
    """

    name: str
    tensor: torch.Tensor
    aliases: tuple[str, ...] = ()
    role: Role = Role.ARGUMENT
    stands_for: torch.Tensor | None = None
    is_leaf: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """All its places, the first one first."""
        return (self.name, *self.aliases)

    @property
    def has_grad(self) -> bool:
        """Whether a backward has left a `.grad`; a tensor that is no leaf keeps one after `retain_grad()` only."""
        keeps_one = self.is_leaf or self.tensor is not self.stands_for
        return keeps_one and self.tensor.grad is not None


def variables_in(name: str, value: Any, role: Role = Role.ARGUMENT) -> list[Variable]:
    """The distinct tensors in a nested structure that require a gradient and can be perturbed, with all paths to each.

    Args:
        name: of the structure; the paths go on from it.
        value: the structure.
        role: of its tensors.
    """
    standing: dict[int, torch.Tensor] = {}
    found = [
        Variable(name + path, standing.setdefault(id(tensor), stand_in(tensor)), (), role, tensor, tensor.is_leaf)
        for path, tensor in tensors_in(value, objects=True)
        if tensor.requires_grad and can_be_perturbed(tensor)
    ]
    return distinct(found)


def stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a leaf for one with `retain_grad()`: autograd refers to its contents, which must stay."""
    if tensor.is_leaf or not tensor.retains_grad:
        return tensor
    leaf = tensor.detach().clone().requires_grad_()
    leaf.grad = tensor.grad
    for hook in hooks_of(tensor):
        leaf.register_hook(hook)
    return leaf


def captured_by(closure: Any) -> list[Variable]:
    """The tensors that a closure captures and that require a gradient; see `captured_in`."""
    return captured_in(captures_of(closure))


def captured_in(found: Captures) -> list[Variable]:
    """The tensors among captures that require a gradient, named after the variables that hold them.

    Without parameters of the modules that are captured, what these hold, and what an optimizer holds.
    """
    of_modules = {id(each) for module in found.modules.values() for each in module.parameters(recurse=False)}
    return [
        Variable(found.names[key], tensor, (), Role.CAPTURED, tensor, tensor.is_leaf)
        for key, tensor in found.tensors.items()
        if key in found.names and key not in of_modules and tensor.requires_grad and can_be_perturbed(tensor)
    ]


def not_perturbed_in(name: str, value: Any) -> list[str]:
    """The paths to tensors that require a gradient and cannot be perturbed, and so are not on trial."""
    found = tensors_in(value, objects=True)
    return [name + path for path, tensor in found if tensor.requires_grad and not can_be_perturbed(tensor)]


def can_be_perturbed(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an ordinary dense one: neither sparse, nested, quantised, meta nor made of other tensors."""
    return is_ordinary(tensor) and not is_wrapper(tensor)


def distinct(variables: Iterable[Variable]) -> list[Variable]:
    """The variables with one for each tensor, under its first name; the other names are its aliases."""
    first: dict[int, Variable] = {}
    for each in variables:
        known = first.setdefault(id(each.tensor), each)
        others = [name for name in each.names if name not in known.names]
        first[id(each.tensor)] = replace(known, aliases=(*known.aliases, *others))
    return list(first.values())


def objects_of(variables: Sequence[Variable]) -> list[torch.Tensor]:
    """The tensors of these variables."""
    return [variable.tensor for variable in variables]
