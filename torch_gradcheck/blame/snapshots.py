"""What a call was given, kept as it was: detached copies of all tensors, containers and objects around them rebuilt."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torch_gradcheck.structure import rebuilt, tensors_in

Replace = Callable[[torch.Tensor], torch.Tensor]

DEPTH = 5
"""How many objects deep a cache that is handed from module to module may hold its tensors."""

AS_THEY_ARE = (nn.Module, torch.Tensor, torch.dtype, torch.device, torch.Generator, type, str, bytes)


class Snapshots:
    """Copies of tensors, one for each tensor and version of it, whoever is given it.

    Attributes:
        bytes: how much memory the copies take.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._copies: dict[tuple[int, int], torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []  # so that no id is used twice

    def of(self, value: Any) -> Any:
        """`value` with every tensor in it copied and detached."""
        return replaced(value, self._copied)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        key = (id(tensor), tensor._version)
        if key not in self._copies:
            self._kept.append(tensor)
            self._copies[key] = tensor.detach().clone()
            self.bytes += tensor.numel() * tensor.element_size()
        return self._copies[key]


def replaced(value: Any, replace: Replace, depth: int = DEPTH) -> Any:
    """As `structure.rebuilt`, and into plain objects too: transformers' caches are written to by those they are given.

    Tensors that `tensors_in` finds are replaced first, in its order.
    """
    return _objects_replaced(rebuilt(value, replace), replace, depth)


def _objects_replaced(value: Any, replace: Replace, depth: int) -> Any:
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_objects_replaced(item, replace, depth) for item in value)
    if type(value) is dict:
        return {key: _objects_replaced(item, replace, depth) for key, item in value.items()}
    if depth == 0 or not is_opaque(value):
        return value
    try:
        new = copy.copy(value)
        attributes = vars(new)
    except Exception:  # an object that refuses to be copied is given as it is
        return value
    for name, held in list(attributes.items()):
        attributes[name] = replaced(held, replace, depth - 1)
    return new


def is_opaque(value: Any) -> bool:
    """Whether `value` is an object of somebody's own, which may hold tensors and be written to."""
    known = isinstance(value, AS_THEY_ARE) or callable(value) or inspect.ismodule(value)
    return not known and hasattr(value, "__dict__") and not tensors_in(value)


def hides_a_graph(value: Any, depth: int = DEPTH) -> bool:
    """Whether objects in `value` hold tensors with a graph, where `tensors_in` does not see them."""
    if type(value) in (tuple, list):
        return any(hides_a_graph(item, depth) for item in value)
    if isinstance(value, dict):
        return any(hides_a_graph(item, depth) for item in value.values())
    if depth == 0 or not is_opaque(value):
        return False
    held = list(vars(value).values())
    return any(tensor.grad_fn is not None for _, tensor in tensors_in(held)) or hides_a_graph(held, depth - 1)
