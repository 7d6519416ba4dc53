"""All that an evaluation of J can reach, and change: the things that functions, modules and the batch refer to.

No code of the user's runs while his objects are walked: types are asked and not `__class__`, `__dict__` is read past
`__getattribute__`, and containers by the methods of the builtin type that they derive from (`builtin_content`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.borrowing.builtin_content import CONTAINERS, attributes_of, builtin_base, is_a, items_of, size_of
from torch_gradcheck.borrowing.random_state import is_generator
from torch_gradcheck.torch_internals.modules import inner_modules
from torch_gradcheck.torch_internals.scripted import attributes_in_code, is_scripted

DEPTH = 4
"""The number of references followed from a holder: list → object → method → function → tensor in its closure is 4."""

MANY = 1000
"""The largest number of items of a container that is looked through; a larger container holds data."""

NOT_ENTERED = {"_thread", "asyncio", "concurrent", "io", "logging", "multiprocessing", "rich", "threading", "tqdm"}
"""Packages whose objects are not looked into: they are no state of a model, and other threads may change them."""


@dataclass
class Captures:
    """Distinct things by their id, in the order they were met.

    Attributes:
        modules, tensors: of torch.
        arrays: of numpy.
        generators: random generators of torch, numpy and Python.
        containers: dicts, lists, sets and deques that a module refers to. One that only a function refers to is left
            out: a function counts and logs on purpose.
        objects: other objects with attributes of their own, under the same condition.
    """

    modules: dict[int, nn.Module] = field(default_factory=dict)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    arrays: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    generators: dict[int, Any] = field(default_factory=dict)
    containers: dict[int, Any] = field(default_factory=dict)
    objects: dict[int, object] = field(default_factory=dict)


def captures_of(*holders: Any) -> Captures:
    """The things that functions, modules and values refer to.

    Functions: in closure cells, defaults, partials, bound objects, and those globals that their code names. Modules: in
    the attributes of all their submodules. On from there through lists, tuples, mappings and the attributes of objects.
    """
    walk = _Walk()
    for holder in holders:
        walk.into(holder, DEPTH, of_module=False)
    return walk.found


class _Walk:
    def __init__(self) -> None:
        self.found = Captures()
        self._seen: set[int] = set()

    def into(self, value: Any, depth: int, of_module: bool) -> None:
        """Takes in `value` and what it holds; `of_module`: whether it is state of a module."""
        if id(value) in self._seen or depth < 0:
            return
        self._seen.add(id(value))
        if is_a(value, nn.Module):
            self._into_module(value)
            return
        for kind in self._kinds(value, of_module):
            kind[id(value)] = value
        of_module = of_module and not is_a(value, FunctionType, MethodType, functools.partial)
        for held in _held(value):
            self.into(held, depth - 1, of_module)

    def _into_module(self, module: nn.Module) -> None:
        """Takes in a module and, whatever the depth, all modules inside it."""
        known, waiting = len(self.found.modules), [module]
        while waiting:
            module = waiting.pop(0)
            self.found.modules[id(module)] = module
            self._seen.add(id(module))
            waiting += [each for each in inner_modules(module) if id(each) not in self.found.modules]
        for each in list(self.found.modules.values())[known:]:
            of_code = attributes_in_code(each) if is_scripted(each) else {}
            for held in [*(attributes_of(each) or {}).values(), *of_code.values()]:
                self.into(held, DEPTH, of_module=True)

    def _kinds(self, value: Any, of_module: bool) -> list[dict[int, Any]]:
        """The collections that a thing belongs to; none where it cannot change, or may change on purpose.

        A container may have attributes as well: a dict that is also read as an object.
        """
        if is_a(value, torch.Tensor):
            return [self.found.tensors]
        if is_a(value, np.ndarray):
            return [self.found.arrays]
        if is_generator(value):
            return [self.found.generators]
        if not of_module:
            return []
        containers = [self.found.containers] if is_a(value, *CONTAINERS) else []
        return containers + ([self.found.objects] if _has_attributes(value) else [])


def _held(value: Any) -> Iterator[Any]:
    if is_a(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif is_a(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif is_a(value, FunctionType):
        yield from _held_by_function(value)
    else:
        if builtin_base(value) is not None and size_of(value) <= MANY:
            yield from items_of(value)
        if _has_attributes(value):
            yield from _held_by_object(value)


def _has_attributes(value: Any) -> bool:
    """Whether `value` is an object whose attributes may be state of J."""
    if type(value) is builtin_base(value) or is_a(
        value, type, ModuleType, FunctionType, MethodType, functools.partial, torch.Tensor, np.ndarray
    ):
        return False
    is_open = str(type(value).__module__).partition(".")[0] not in NOT_ENTERED
    return is_open and attributes_of(value) is not None


def _held_by_function(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from (function.__globals__[name] for name in names_used(function) if name in function.__globals__)


def names_used(function: FunctionType) -> set[str]:
    """Global names in its code, those of lambdas and comprehensions inside it included."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return names


def _held_by_object(value: Any) -> Iterator[Any]:
    yield from list((attributes_of(value) or {}).values())
    call = vars(type(value)).get("__call__")
    if isinstance(call, FunctionType):
        yield from _held_by_function(call)
