"""What a call of a module can read and write besides its arguments, and whether that is still what it was.

The code of a module gets at its attributes and those of what it holds; at the closures, defaults and globals of its
methods and of the functions that these name; at attributes of classes. If nothing of this changes, the call has left
nothing behind for others, and others have changed nothing for it. What cannot be looked into (a lock, a generator, an
object of C) makes a reach unknown. Code of torch, numpy and the standard library is taken to keep nothing.
"""

from __future__ import annotations

import enum
import functools
import pathlib
import re
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GenericAlias,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    UnionType,
)
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.borrowing.builtin_content import attributes_of, builtin_base, content_of_cell, reader_of, size_of
from torch_gradcheck.borrowing.captures import names_used
from torch_gradcheck.borrowing.random_state import is_generator
from torch_gradcheck.borrowing.reach import Reach, Watch, is_ordinary, mark_of
from torch_gradcheck.torch_internals.modules import has_forward_hooks, is_for_no_forward, is_made_of_code
from torch_gradcheck.torch_internals.operations import is_operator
from torch_gradcheck.torch_internals.scripted import is_scripted

MANY = 1000
"""The largest number of items of a container that is compared at every call; of a larger one nothing is known."""

MOST_WATCHED = 2000
"""Containers that a module may reach; with more, to look at them takes longer than to run it."""

KEEPS_NOTHING = {"torch", "numpy", "builtins", "torch_gradcheck", *sys.stdlib_module_names}
"""Packages whose functions and classes are not looked into."""

NO_STATE_OF_J = {"abc", "inspect", "io", "logging", "re", "rich", "tqdm", "typing", "warnings"}
"""Packages whose objects are no state of a model."""

IMMUTABLE = (
    *(bool, int, float, complex, str, bytes, type(None), type(...), range, slice, CodeType),
    *(GenericAlias, UnionType),
    *(np.generic, np.dtype, enum.Enum, re.Pattern, pathlib.PurePath),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.finfo, torch.iinfo),
)

CONSTRUCTION = {"__init__", "__new__", "__post_init__", "__init_subclass__", "__prepare__", "__set_name__"}
"""Methods that run where an object or a class is made; of a class that no code names, they have run."""

FOR_READERS = {
    "__repr__",
    "__str__",
    "__format__",
    "__rich_repr__",
    "__dir__",
    "__reduce__",
    "__reduce_ex__",
    "__del__",
}
"""Methods that make texts and copies, of which J reads nothing."""

ABSENT = object()
"""Stands for the content of a cell or slot that is empty, and for a global that does not exist."""


class Reaches:
    """The reaches of the modules of a model, as everything is now.

    Attributes:
        known: those of which all is known, by module.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        graph = _Graph()
        reaches = {module: graph.reach_of(module) for module in modules}
        self.known = {module: reach for module, reach in reaches.items() if reach is not None}

    def learn_tallies(self) -> None:
        """After an evaluation of J that has been rewound: notes which numbers have moved on."""
        for watch in {watch for reach in self.known.values() for watch in reach.watches}:
            watch.learn_tallies()
        for reach in self.known.values():
            reach.watches = [watch for watch in reach.watches if watch.tallies is not None]


@dataclass(eq=False)
class _Node:
    """One thing that code can get at.

    Attributes:
        value: the thing, kept alive, so that no id is used twice.
        holds: the ids of the things to be got at from there.
        watches: the places in it that hold them.
        mark: see `mark_of`; of a tensor.
        known: whether its changes can be seen.
        names: those that occur in it; of a function.
        methods: those that it has; of a class.
        constructs: classes that it may make objects of; of a function.
    """

    value: Any
    holds: set[int] = field(default_factory=set)
    watches: list[Watch] = field(default_factory=list)
    mark: tuple[int, int] | None = None
    known: bool = True
    names: set[str] = field(default_factory=set)
    methods: dict[str, Any] = field(default_factory=dict)
    constructs: set[type] = field(default_factory=set)


class _Search:
    """The search of all that one module gets at.

    Of a class those methods are entered whose names occur in code that was entered, or that Python calls by itself.
    """

    def __init__(self, graph: _Graph, module: nn.Module) -> None:
        self.watches, self.tensors = list[Watch](), list[tuple[torch.Tensor, tuple[int, int]]]()
        self._graph, self._seen = graph, {id(module)}
        self._waiting = [graph.node(module)]
        self._names, self._constructed, self._classes = {"forward"}, set[type](), list[_Node]()

    def is_complete(self) -> bool:
        """Enters all there is; False where something cannot be looked into, or there is too much of it."""
        while self._waiting:
            while self._waiting:
                node = self._waiting.pop()
                self._take(node)
                if not node.known or len(self.watches) > MOST_WATCHED:
                    return False
            for node in self._classes:
                self._push([each for name, each in node.methods.items() if self._runs(name, node.value)])
        return True

    def _take(self, node: _Node) -> None:
        self.watches += node.watches
        self._names |= node.names
        self._constructed |= node.constructs
        if node.mark is not None:
            self.tensors.append((node.value, node.mark))
        if node.methods:
            self._classes.append(node)
        self._push([self._graph.nodes[each].value for each in node.holds])

    def _push(self, values: Iterable[Any]) -> None:
        for value in values:
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._waiting.append(self._graph.node(value))

    def _runs(self, method: str, cls: type) -> bool:
        """Whether code that was entered may call a method of this name of a class."""
        if method in CONSTRUCTION:
            return cls in self._constructed
        return method in self._names or (method.startswith("__") and method not in FOR_READERS)


class _Graph:
    """Things that code can get at, and what holds what; each is looked into once."""

    def __init__(self) -> None:
        self.nodes: dict[int, _Node] = {}
        self._expanded: set[int] = set()

    def reach_of(self, module: nn.Module) -> Reach | None:
        """What a module gets at; None where that is not known."""
        search = _Search(self, module)
        return Reach(search.watches, search.tensors) if search.is_complete() else None

    def node(self, value: Any) -> _Node:
        """The node of a thing, which has been looked into."""
        node = self._enter(value)
        if id(value) not in self._expanded:
            self._expanded.add(id(value))
            self._expand(node)
        return node

    def _enter(self, value: Any) -> _Node:
        return self.nodes.setdefault(id(value), _Node(value))

    def _expand(self, node: _Node) -> None:
        value, kind = node.value, type(node.value)
        if _is_out_of_j(kind):
            return
        if issubclass(kind, torch.Tensor):
            self._expand_tensor(node)
        elif issubclass(kind, type):
            self._expand_class(node)
        elif issubclass(kind, FunctionType):
            self._expand_function(node)
        elif issubclass(kind, ModuleType):
            node.known = keeps_nothing(value.__name__)  # of others, what code names is entered where it is named
        elif builtin_base(value) is not None:
            self._expand_container(node)
        else:
            held = _held_by_wrapper(value)
            if held is not None:
                self._hold(node, held)
            else:
                self._expand_object(node)

    def _hold(self, node: _Node, values: Iterable[Any]) -> None:
        for value in values:
            if not issubclass(type(value), IMMUTABLE):
                self._enter(value)
                node.holds.add(id(value))

    def _expand_tensor(self, node: _Node) -> None:
        tensor = node.value
        node.known = type(tensor) in (torch.Tensor, nn.Parameter) and is_ordinary(tensor)
        if node.known:
            node.mark = mark_of(tensor)
        if vars(tensor):
            node.watches.append(Watch(reader_of(vars(tensor))))
            self._hold(node, vars(tensor).values())

    def _expand_container(self, node: _Node) -> None:
        container = node.value
        if size_of(container) > MANY:
            node.known = False
            return
        if builtin_base(container) not in (tuple, frozenset):
            node.watches.append(Watch(reader_of(container)))
        self._hold(node, reader_of(container)())
        if type(container) is not builtin_base(container):
            self._expand_object(node)

    def _expand_class(self, node: _Node) -> None:
        cls = node.value
        if keeps_nothing(cls.__module__):
            return
        node.watches.append(Watch(reader_of(vars(cls))))
        self._hold(node, cls.__mro__[1:])
        methods = {name: each for name, each in vars(cls).items() if _is_method(each)}
        self._hold(
            node, [each for name, each in vars(cls).items() if name not in methods and not name.startswith("__")]
        )
        node.methods = methods

    def _expand_function(self, node: _Node) -> None:
        function = node.value
        if keeps_nothing(function.__module__):
            return
        names = names_used(function)
        node.names = names
        node.watches.append(Watch(lambda: [content_of_cell(cell, ABSENT) for cell in function.__closure__ or ()]))
        self._hold(node, node.watches[-1].before)
        self._hold(node, [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), vars(function)])
        self._hold_named(node, function.__globals__, names, set())

    def _hold_named(self, node: _Node, scope: dict[str, Any], names: set[str], seen: set[int]) -> None:
        """Holds what code with these names in it gets at in a scope, and in the files that have a name there."""
        seen.add(id(scope))
        known = [name for name in names if name in scope]
        node.watches.append(Watch(lambda: [scope.get(name, ABSENT) for name in known]))
        self._hold(node, [each for each in node.watches[-1].before if type(each) is not ModuleType])
        for cls in [each for each in node.watches[-1].before if issubclass(type(each), type)]:
            node.constructs.update(cls.__mro__)
        for file in [each for each in node.watches[-1].before if type(each) is ModuleType]:
            if id(vars(file)) not in seen and not keeps_nothing(file.__name__):
                self._hold_named(node, vars(file), names, seen)

    def _expand_object(self, node: _Node) -> None:
        value, attributes = node.value, attributes_of(node.value)
        slots = _slots(type(value))
        is_container = builtin_base(value) is not None
        if (attributes is None and not slots and not is_container) or _is_opaque(value):
            node.known = False
            return
        if attributes is not None:
            node.watches.append(Watch(reader_of(attributes)))
            is_module = issubclass(type(value), nn.Module)
            held = [each for name, each in attributes.items() if not (is_module and is_for_no_forward(name))]
            self._hold(node, held)
            node.known = not (is_module and has_forward_hooks(value))
        if slots:
            node.watches.append(Watch(lambda: [_content_of_slot(slot, value) for slot in slots]))
            self._hold(node, node.watches[-1].before)
        self._hold(node, [type(value)])


def keeps_nothing(module: Any) -> bool:
    """Whether code of this file or package is taken to keep nothing."""
    return str(module).partition(".")[0] in KEEPS_NOTHING


def _content_of_slot(slot: MemberDescriptorType, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:  # not filled yet
        return ABSENT


def _slots(kind: type) -> list[MemberDescriptorType]:
    found = list[MemberDescriptorType]()
    for cls in kind.__mro__:
        if not keeps_nothing(cls.__module__):
            found += [each for each in vars(cls).values() if type(each) is MemberDescriptorType]
    return found


def _held_by_wrapper(value: Any) -> list[Any] | None:
    """What a thing holds that is wrapped around others and cannot be changed; None for any other thing."""
    kind = type(value)
    if issubclass(kind, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if issubclass(kind, MethodType):
        return [value.__func__, value.__self__]
    if issubclass(kind, BuiltinFunctionType):
        return [] if type(value.__self__) is ModuleType else [value.__self__]
    if issubclass(kind, classmethod | staticmethod):
        return [value.__func__]
    if issubclass(kind, property):
        return [value.fget, value.fset, value.fdel]
    if kind is functools.cached_property:
        return [value.func]
    if kind is weakref.ref:
        return [value()]
    return [] if kind.__name__.strip("_") in _DESCRIPTORS and kind.__module__ in ("builtins", "collections") else None


_DESCRIPTORS = {
    *("method_descriptor", "wrapper_descriptor", "getset_descriptor", "member_descriptor", "method-wrapper"),
    *("classmethod_descriptor", "tuplegetter"),
}


def _is_method(value: Any) -> bool:
    return issubclass(type(value), FunctionType | classmethod | staticmethod | property | functools.cached_property)


def _is_out_of_j(kind: type) -> bool:
    """Whether the objects of a class are no state that a forward works with."""
    package = str(kind.__module__).partition(".")[0].strip("_")
    return package in NO_STATE_OF_J or is_operator(kind) or kind is object


def _is_opaque(value: Any) -> bool:
    """Whether an object has state besides its attributes: it draws at random, remembers results, is compiled code."""
    if is_generator(value) or issubclass(type(value), np.ndarray | functools._lru_cache_wrapper):
        return True
    if issubclass(type(value), nn.Module) and is_scripted(value):
        return True
    return is_made_of_code(type(value))
