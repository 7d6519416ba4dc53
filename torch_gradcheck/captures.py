"""What a loss function or closure holds on to: modules and tensors it reaches without being given them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

DEPTH = 4
"""How many steps of holding (a partial of a method of an object in a list ...) are followed."""


@dataclass
class Captures:
    """Distinct modules and tensors, in the order they were met."""

    modules: dict[int, nn.Module] = field(default_factory=dict)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)


def captures_of(function: Callable[..., Any]) -> Captures:
    """Modules and tensors that `function` holds.

    In closure cells, defaults, partials, bound objects, and those globals that its code names; through lists, tuples
    and mappings and the attributes of a bound object.
    """
    found = Captures()
    _collect(function, found, set(), DEPTH)
    return found


def _collect(value: Any, found: Captures, seen: set[int], depth: int) -> None:
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        found.modules[id(value)] = value
    elif isinstance(value, torch.Tensor):
        found.tensors[id(value)] = value
    else:
        for held in _held(value):
            _collect(held, found, seen, depth - 1)


def _held(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType):
        yield from _held_by_function(value)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, Mapping):
        yield from value.values()
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not inspect.ismodule(value):
        yield from _held_by_object(value)


def _held_by_function(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from (function.__globals__[name] for name in _names_used(function) if name in function.__globals__)


def _names_used(function: FunctionType) -> set[str]:
    """Global names in its code, those of lambdas and comprehensions inside it included."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return names


def _held_by_object(value: Any) -> Iterator[Any]:
    yield from vars(value).values()
    call = vars(type(value)).get("__call__")
    if isinstance(call, FunctionType):
        yield from _held_by_function(call)
