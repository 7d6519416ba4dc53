"""Tensors in nested tuples, lists, mappings and objects: rebuilt with every tensor replaced, or listed with paths."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, MutableMapping
from operator import is_
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch

from torch_gradcheck.borrowing.builtin_content import attributes_of, content_of_cell, is_a, items_of
from torch_gradcheck.torch_internals.sharded import is_about_ranks

Replace = Callable[[torch.Tensor], torch.Tensor]


PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
"""Types of values that hold nothing; asked first, since most values are of them."""

DEPTH = 4
"""The number of attributes and items followed into an object in search of tensors: graph.nodes[0].x is 3."""


def rebuilt(value: Any, replace: Replace, *, functions: bool = False) -> Any:
    """`value` in new containers of the same types, each tensor in it replaced and each array copied.

    Reaches into tuples (named ones too), lists, dicts, other mappings (transformers' BatchEncoding), dataclasses
    (transformers' outputs) and plain objects that hold tensors in their attributes (graphs of torch_geometric), but not
    into what torch knows of ranks. With
    `functions` also into what a partial binds and a closure has taken from around it. A value without tensors and
    arrays is not copied. `replace` is called once for each occurrence of a tensor.
    """
    return _Copy(replace, functions).of(value)


class _Copy:
    """One copy of a nested structure; an object that occurs twice in it, or inside of itself, is copied once."""

    def __init__(self, replace: Replace, functions: bool) -> None:
        self._replace, self._functions = replace, functions
        self._objects: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if is_a(value, torch.Tensor):
            return self._replace(value)
        if is_a(value, np.ndarray):
            return value.copy()
        if is_a(value, tuple):
            items = items_of(value)
            copied = [self.of(item) for item in items]
            return value if all(map(is_, items, copied)) else _tuple_like(value, copied)
        if is_a(value, list):
            new = copy.copy(value)
            new[:] = [self.of(item) for item in items_of(value)]
            return new
        if is_a(value, Mapping):
            return self._mapping_like(value)
        if is_about_ranks(value):
            return value
        if dataclasses.is_dataclass(type(value)):
            return self._dataclass_like(value)
        if self._functions and isinstance(value, functools.partial | FunctionType):
            return self._function_like(value)
        return self._object_like(value) if _is_plain_object(value, DEPTH) else value

    def _mapping_like(self, value: Mapping[Any, Any]) -> Any:
        if type(value) is dict:
            return {key: self.of(item) for key, item in value.items()}
        new: Any = copy.copy(value) if is_a(value, MutableMapping) else dict(value)
        for key, item in value.items():
            copied = self.of(item)
            if copied is not item:
                new[key] = copied
        return new

    def _dataclass_like(self, value: Any) -> Any:
        new = copy.copy(value)
        for field in dataclasses.fields(value):
            item = getattr(value, field.name, None)  # None: a field that is not set yet
            copied = self.of(item)
            if copied is not item:
                object.__setattr__(new, field.name, copied)  # frozen dataclasses too
        return new

    def _function_like(self, value: functools.partial[Any] | FunctionType) -> Any:
        """The function with copies of what holds tensors; it shares all else, which it may write to."""
        if isinstance(value, functools.partial):
            return functools.partial(self.of(value.func), *self.of(value.args), **self.of(value.keywords))
        cells = value.__closure__ or ()
        if not any(_holds_numbers(content_of_cell(cell), DEPTH) for cell in cells):
            return value
        copied = tuple(map(self._cell_like, cells))
        new = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, copied)
        new.__kwdefaults__ = value.__kwdefaults__
        new.__dict__.update(value.__dict__)
        return new

    def _cell_like(self, cell: CellType) -> CellType:
        content = content_of_cell(cell)
        return CellType(self.of(content)) if _holds_numbers(content, DEPTH) else cell

    def _object_like(self, value: Any) -> Any:
        if id(value) not in self._objects:
            new = self._objects[id(value)] = copy.copy(value)
            vars(new).update({name: self.of(item) for name, item in vars(value).items()})
        return self._objects[id(value)]


def tensors_in(value: Any, *, objects: bool = False) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a nested structure with the path to each, such as `[0]['mask']`.

    Args:
        value: the structure.
        objects: whether to look into plain objects too, as `rebuilt` does. What an object keeps in an attribute that
            begins with an underscore, it shows as its own: the path of `graph._store['x']` is `['x']`.
    """
    return _tensors_in(value, objects, frozenset())


def _tensors_in(value: Any, objects: bool, around: frozenset[int]) -> list[tuple[str, torch.Tensor]]:
    """The same; `around` are the ids of what the value lies in, which it may refer to."""
    if type(value) in PLAIN or id(value) in around:
        return []
    if is_a(value, torch.Tensor):
        return [("", value)]
    children = children_of(value) or (_attributes(value) if objects else [])
    inside = around | {id(value)} if children else around
    return [(path + rest, tensor) for path, item in children for rest, tensor in _tensors_in(item, objects, inside)]


def _attributes(value: Any) -> list[tuple[str, Any]]:
    if not _is_plain_object(value, DEPTH):
        return []
    return [("" if name.startswith("_") else f".{name}", item) for name, item in (attributes_of(value) or {}).items()]


def children_of(value: Any) -> list[tuple[str, Any]]:
    """The entries of a list, tuple, mapping or dataclass with the path to each; none of anything else."""
    if is_a(value, list, tuple):
        return [(f"[{position}]", item) for position, item in enumerate(items_of(value))]
    if is_a(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if dataclasses.is_dataclass(type(value)) and not is_about_ranks(value):
        return [(f".{field.name}", getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return []


def _is_plain_object(value: Any, depth: int) -> bool:
    """Whether an object has tensors or arrays in its attributes, and is neither code nor a module."""
    if is_a(value, type, torch.nn.Module) or callable(value) or is_about_ranks(value):
        return False
    attributes = attributes_of(value)
    return attributes is not None and any(_holds_numbers(item, depth - 1) for item in attributes.values())


def _holds_numbers(value: Any, depth: int) -> bool:
    if is_a(value, torch.Tensor, np.ndarray):
        return True
    if depth < 0:
        return False
    return any(_holds_numbers(item, depth - 1) for _, item in children_of(value)) or _is_plain_object(value, depth)


def _tuple_like(value: tuple[Any, ...], items: list[Any]) -> Any:
    """A tuple of the same type, made without its constructor, which may ask for something else than items."""
    try:
        new = tuple.__new__(type(value), items)
    except TypeError:  # what operations of torch return, made in C
        return type(value)(items)
    attributes = attributes_of(new)
    if attributes is not None:
        attributes.update(attributes_of(value) or {})
    return new
