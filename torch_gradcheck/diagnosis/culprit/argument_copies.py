"""Copies of a call's arguments: tensors detached and cloned, the containers and objects around them rebuilt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.builtin_content import attributes_of, is_a
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.torch_internals.sharded import is_about_ranks
from torch_gradcheck.torch_internals.tensors import version_of

Replace = Callable[[torch.Tensor], torch.Tensor]

OBJECT_DEPTH = 5
"""Objects are copied up to 5 levels deep: a cache may hold layers, these may hold buffers, and so on."""

AS_THEY_ARE = (nn.Module, torch.Tensor, torch.dtype, torch.device, torch.Generator, type, str, bytes)
"""Types of objects that are passed on without a copy."""


class Snapshots:
    """Copies of tensors: one for each tensor and version, shared by all calls that are given it.

    Attributes:
        bytes: memory of the copies, in bytes.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._copies: dict[tuple[int, int], torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []  # kept alive, so that no id is used twice

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor, detached."""
        key = (id(tensor), version_of(tensor))
        if key not in self._copies:
            self._kept.append(tensor)
            self._copies[key] = laid_out_alike(tensor.detach())
            self.bytes += tensor.numel() * tensor.element_size()
        return self._copies[key]


def laid_out_alike(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, in the tensor's graph, with the tensor's strides: a backward is to meet what it met in the run.

    `clone` gives contiguous copies of slices, and of expanded tensors, which have a stride of 0.
    """
    if tensor.layout is not torch.strided or tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return tensor.clone()
    copied = tensor.clone()
    if copied.stride() == tensor.stride():
        return copied
    once = tensor
    for axis, stride in enumerate(tensor.stride()):
        once = once.narrow(axis, 0, 1) if stride == 0 and once.shape[axis] else once
    try:
        return once.new_empty_strided(once.shape, once.stride()).copy_(once).expand(tensor.shape)
    except RuntimeError:  # entries overlap in another way
        return copied


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor that `replaced` replaces, in the order in which it replaces them."""
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    rebuilt(value, keep, functions=True)
    return found


def replaced(value: Any, replace: Replace) -> Any:
    """A copy of `value` with every tensor replaced, as by `nested.rebuilt`.

    Objects without tensors are copied as well: an empty cache is written to by the call that is given it.
    """
    return _objects_copied(rebuilt(value, replace, functions=True), OBJECT_DEPTH, {})


def _objects_copied(value: Any, depth: int, copies: dict[int, Any]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_objects_copied(item, depth, copies) for item in value)
    if type(value) is dict:
        return {key: _objects_copied(item, depth, copies) for key, item in value.items()}
    if depth == 0 or not _is_an_object(value):
        return value
    if id(value) not in copies:
        copies[id(value)] = _copied(value, depth, copies)
    return copies[id(value)]


def _copied(value: Any, depth: int, copies: dict[int, Any]) -> Any:
    try:
        new = copy.copy(value)
    except Exception:  # an object that refuses to be copied is given as it is
        return value
    attributes = vars(new)
    attributes.update({name: _objects_copied(held, depth - 1, copies) for name, held in attributes.items()})
    return new


def _is_an_object(value: Any) -> bool:
    """Whether `value` is an object with attributes of its own, which a call may write to."""
    known = is_a(value, *AS_THEY_ARE) or callable(value) or is_about_ranks(value)
    return not known and attributes_of(value) is not None
