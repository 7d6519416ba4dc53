"""All that an evaluation of J can reach, and change: the things that functions, modules and the batch refer to.

No code of the user's runs while his objects are walked: types are asked and not `__class__`, `__dict__` is read past
`__getattribute__`, and containers by the methods of the builtin type that they derive from (`builtin_content`).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.borrowing.builtin_content import CONTAINERS, attributes_of, builtin_base, content_of, is_a, size_of
from torch_gradcheck.borrowing.random_state import is_generator
from torch_gradcheck.torch_internals.modules import inner_modules, named_inner_modules, own_tensors
from torch_gradcheck.torch_internals.scripted import attributes_in_code, is_scripted
from torch_gradcheck.torch_internals.sharded import is_about_ranks

DEPTH = 4
"""The number of references followed from a holder: list → object → method → function → tensor in its closure is 4."""

MANY = 1000
"""The largest number of items of a container that is looked through; a larger one holds data, but in an optimizer."""

NOT_ENTERED = {"_thread", "asyncio", "concurrent", "io", "logging", "multiprocessing", "rich", "threading", "tqdm"}
"""Packages whose objects are not looked into: they are no state of a model, and other threads may change them."""

STEPPERS = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
"""What moves the weights in a training step, and keeps state of its own for that."""


class Owner(Enum):
    """Whose state a thing is."""

    FUNCTION = "a function, which counts and logs on purpose"
    MODULE = "a module"
    STEPPER = "an optimizer, a scheduler or a scaler"


@dataclass
class Captures:
    """Distinct things by their id, in the order they were met.

    Attributes:
        modules, tensors: of torch.
        arrays: of numpy.
        generators: random generators of torch, numpy and Python.
        containers: dicts, lists, sets and deques that a module or a stepper refers to. One that only a function refers
            to is left out: a function counts and logs on purpose.
        objects: other objects with attributes of their own, under the same condition.
        of_steppers: the ids of those containers and objects that are state of an optimizer, a scheduler or a scaler.
        names: of the tensors that are reached by no way through an optimizer, and through a module only as a plain
            attribute: the expression by which the function gets at them, such as `x`, `inputs['x']` or `self.z`.
    """

    modules: dict[int, nn.Module] = field(default_factory=dict)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    arrays: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    generators: dict[int, Any] = field(default_factory=dict)
    containers: dict[int, Any] = field(default_factory=dict)
    objects: dict[int, object] = field(default_factory=dict)
    of_steppers: set[int] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)


def captures_of(*holders: Any) -> Captures:
    """The things that functions, modules and values refer to.

    Functions: in closure cells, defaults, partials, bound objects, and those globals that their code names. Modules: in
    the attributes of all their submodules. On from there through lists, tuples, mappings and the attributes of objects.
    """
    walk = _Walk()
    for holder in holders:
        walk.into(holder, "", DEPTH, Owner.FUNCTION)
    walk.name_attributes()
    return walk.found


class _Walk:
    def __init__(self) -> None:
        self.found = Captures()
        self._seen: set[int] = set()
        self._named_modules: dict[str, nn.Module] = {}

    def name_attributes(self) -> None:
        """Names the leaves that are plain attributes of modules, no parameters and no buffers, and have no name yet."""
        waiting, known = list(self._named_modules.items()), set[int]()
        while waiting:
            name, module = waiting.pop(0)
            if id(module) not in known:
                known.add(id(module))
                for attribute, held in (attributes_of(module) or {}).items():
                    if is_a(held, torch.Tensor) and not is_a(held, nn.Parameter) and held.is_leaf:
                        self.found.names.setdefault(id(held), _joined(name, attribute))
                waiting += [(_joined(name, inner), each) for inner, each in named_inner_modules(module)]

    def into(self, value: Any, name: str | None, depth: int, owner: Owner) -> None:
        """Takes in `value` and what it holds.

        Args:
            value: any object.
            name: the expression for it, "" for a holder itself; None where it has none.
            depth: the number of references that are followed from it.
            owner: whose state it is.
        """
        if depth >= 0 and name is not None and is_a(value, torch.Tensor):
            self.found.names.setdefault(id(value), name)
        if depth >= 0 and name is not None and is_a(value, nn.Module):
            self._named_modules.setdefault(name, value)
        if id(value) in self._seen or depth < 0:
            return
        self._seen.add(id(value))
        if is_a(value, nn.Module):
            self._into_module(value)
            return
        if is_a(value, *STEPPERS):
            depth, owner = DEPTH, Owner.STEPPER
        for kind in self._kinds(value, owner):
            kind[id(value)] = value
        owner = Owner.FUNCTION if is_a(value, FunctionType, MethodType, functools.partial) else owner
        most = sys.maxsize if owner is Owner.STEPPER else MANY
        for held_name, held in _held(value, None if is_a(value, torch.optim.Optimizer) else name, most):
            self.into(held, held_name, depth - 1, owner)

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
            for held in [*(attributes_of(each) or {}).values(), *of_code.values(), *own_tensors(each)]:
                self.into(held, None, DEPTH, Owner.MODULE)

    def _kinds(self, value: Any, owner: Owner) -> list[dict[int, Any]]:
        """The collections that a thing belongs to; none where it cannot change, or may change on purpose.

        A container may have attributes as well: a dict that is also read as an object.
        """
        if is_a(value, torch.Tensor):
            return [self.found.tensors]
        if is_a(value, np.ndarray):
            return [self.found.arrays]
        if is_generator(value):
            return [self.found.generators]
        if owner is Owner.FUNCTION:
            return []
        if owner is Owner.STEPPER:
            self.found.of_steppers.add(id(value))
        containers = [self.found.containers] if is_a(value, *CONTAINERS) else []
        return containers + ([self.found.objects] if _has_attributes(value) else [])


Held = Iterator[tuple[str | None, Any]]
"""The expressions for what is held, and what they stand for."""


def _held(value: Any, name: str | None, most: int) -> Held:
    if is_a(value, functools.partial):
        yield None if name is None else "", value.func
        yield from ((_named(name, "args", f"[{k}]"), each) for k, each in enumerate(value.args))
        yield from ((_named(name, key), each) for key, each in value.keywords.items())
    elif is_a(value, MethodType):
        yield None if name is None else "", value.__func__
        yield _named(name, "self") if not name else f"{name}.__self__", value.__self__
    elif is_a(value, FunctionType):
        yield from ((_named(name, own), each) for own, each in _held_by_function(value))
    else:
        if builtin_base(value) is not None and size_of(value) <= most:
            yield from _items(value, name)
        if _has_attributes(value):
            yield from _held_by_object(value, name)


def _joined(*names: str) -> str:
    return ".".join(filter(None, names))


def _named(name: str | None, own: str, rest: str = "") -> str | None:
    """What a function calls its own; None where there is no way to the function itself."""
    return None if name is None else own + rest


def _items(container: Any, name: str | None) -> Held:
    content = content_of(container)
    if is_a(content, dict):
        yield from ((None if name is None else f"{name}[{key!r}]", item) for key, item in content.items())
    else:
        yield from ((None if name is None else f"{name}[{k}]", item) for k, item in enumerate(content))


def _has_attributes(value: Any) -> bool:
    """Whether `value` is an object whose attributes may be state of J."""
    if type(value) is builtin_base(value) or is_a(
        value, type, ModuleType, FunctionType, MethodType, functools.partial, torch.Tensor, np.ndarray
    ):
        return False
    is_open = str(type(value).__module__).partition(".")[0] not in NOT_ENTERED and not is_about_ranks(value)
    return is_open and attributes_of(value) is not None


def _held_by_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The names in a function's code and signature, and what they stand for."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a cell not filled yet
            continue
    defaults = function.__defaults__ or ()
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(positional[len(positional) - len(defaults) :], defaults, strict=False)
    yield from (function.__kwdefaults__ or {}).items()
    own_globals = function.__globals__
    yield from ((name, own_globals[name]) for name in sorted(names_used(function)) if name in own_globals)


def names_used(function: FunctionType) -> set[str]:
    """Global names in its code, those of lambdas and comprehensions inside it included."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return names


def _held_by_object(value: Any, name: str | None) -> Held:
    for attribute, held in list((attributes_of(value) or {}).items()):
        yield None if name is None else f"{name or 'self'}.{attribute}", held
    call = vars(type(value)).get("__call__")
    if isinstance(call, FunctionType):
        yield from ((_named(name, own), each) for own, each in _held_by_function(call))
