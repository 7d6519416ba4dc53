"""The content of containers and objects as Python itself keeps it, read and written past what their classes override.

A subclass of tuple, list or dict may raise in `__len__`, count its look-ups or do work in `__iter__`. None of that runs
here: the methods are those of the builtin base, and attributes are those of the instance's own `__dict__`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from types import CellType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import Any

CONTAINERS = (dict, list, set, deque)
"""Types of containers that can be written to."""

_BASES = (OrderedDict, dict, list, tuple, set, frozenset, deque, MappingProxyType)
"""Builtin containers; one that derives from another comes first."""

_MAPPINGS = (OrderedDict, dict, MappingProxyType)


def is_a(value: Any, *types: type) -> bool:
    """As isinstance, which would also ask the `__class__` of the object: a property, in a proxy."""
    return issubclass(type(value), types)


def builtin_base(value: Any) -> Any:
    """The builtin container that `value` is or derives from; None where it is none."""
    for base in _BASES:  # and no generator: a signal that comes where one is ended is lost
        if issubclass(type(value), base):
            return base
    return None


def size_of(container: Any) -> int:
    """The number of items."""
    return int(builtin_base(container).__len__(container))


def items_of(container: Any) -> list[Any]:
    """The items of a container, the values of a mapping."""
    base = builtin_base(container)
    return [*base.values(container)] if base in _MAPPINGS else [*base.__iter__(container)]


def content_of(container: Any) -> Any:
    """The content in a new dict, for a mapping, or in a new list."""
    base = builtin_base(container)
    return dict(base.items(container)) if base in _MAPPINGS else items_of(container)


def reader_of(container: Any) -> Callable[[], list[Any]]:
    """A function that lists the items of a container, keys first: for one that is read again and again."""
    base = builtin_base(container)
    if type(container) is dict:
        return lambda: [*container, *container.values()]
    if base in _MAPPINGS:
        keys, values = base.keys, base.values
        return lambda: [*keys(container), *values(container)]
    iterate = base.__iter__
    return lambda: [*iterate(container)]


def refill(container: Any, content: Any) -> None:
    """Gives a container that can be written to the content that `content_of` gave."""
    base = builtin_base(container)
    base.clear(container)
    if base not in _MAPPINGS:
        (base.extend if base in (list, deque) else base.update)(container, content)
        return
    for key, item in content.items():
        base.__setitem__(container, key, item)


def put_item(mapping: Any, key: Any, item: Any) -> None:
    """Has a key of a dict stand for an item."""
    builtin_base(mapping).__setitem__(mapping, key, item)


def drop_item(mapping: Any, key: Any) -> None:
    """Takes a key out of a dict that may have it."""
    builtin_base(mapping).pop(mapping, key, None)


def content_of_cell(cell: CellType, empty: Any = None) -> Any:
    """What a closure has taken from around it; `empty` before the name there has a value."""
    try:
        return cell.cell_contents
    except ValueError:
        return empty


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The instance's own `__dict__`; None for an object without one, such as a number or a builtin container."""
    found: list[Any] = [vars(cls)["__dict__"] for cls in type(value).__mro__ if "__dict__" in vars(cls)]
    descriptor: Any = found[0] if found else None
    if type(descriptor) not in (GetSetDescriptorType, MemberDescriptorType):  # a property, in a proxy
        return None
    attributes = descriptor.__get__(value)
    return attributes if type(attributes) is dict else None
