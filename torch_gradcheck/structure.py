"""Batches are nested: tensors inside tuples, lists, mappings and dataclasses, rebuilt with every tensor replaced."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

Replace = Callable[[torch.Tensor], torch.Tensor]


def rebuilt(value: Any, replace: Replace) -> Any:
    """`value` in new containers of the same types, each tensor in it replaced; what holds no tensor stays itself.

    Reaches into tuples (named ones too), lists, dicts, other mappings (transformers' BatchEncoding) and dataclasses
    (transformers' outputs). `replace` is called once for each occurrence of a tensor.
    """
    if isinstance(value, torch.Tensor):
        return replace(value)
    if isinstance(value, tuple):
        items = [rebuilt(item, replace) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else _tuple_like(value, items)
    if isinstance(value, list):
        new = copy.copy(value)
        new[:] = [rebuilt(item, replace) for item in value]
        return new
    if isinstance(value, Mapping):
        return _mapping_like(value, replace)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass_like(value, replace)
    return value


def tensors_in(value: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a nested structure with the path to each, such as `[0]['mask']`."""
    if isinstance(value, torch.Tensor):
        return [("", value)]
    return [(path + rest, tensor) for path, item in _children(value) for rest, tensor in tensors_in(item)]


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        return [(f"[{position}]", item) for position, item in enumerate(value)]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def _tuple_like(value: tuple[Any, ...], items: list[Any]) -> Any:
    return tuple(items) if type(value) is tuple else type(value)(items)  # torch.Size and other plain subclasses


def _mapping_like(value: Mapping[Any, Any], replace: Replace) -> Any:
    if type(value) is dict:
        return {key: rebuilt(item, replace) for key, item in value.items()}
    new = copy.copy(value) if isinstance(value, MutableMapping) else dict(value)
    for key, item in value.items():
        replaced = rebuilt(item, replace)
        if replaced is not item:
            new[key] = replaced
    return new


def _dataclass_like(value: Any, replace: Replace) -> Any:
    new = copy.copy(value)
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        replaced = rebuilt(item, replace)
        if replaced is not item:
            object.__setattr__(new, field.name, replaced)  # frozen dataclasses too
    return new
