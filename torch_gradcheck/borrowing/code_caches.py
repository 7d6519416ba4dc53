"""Caches in the code of a model, emptied after a check, which may have left tensors of its own precision in them.

There are three kinds: tables of `functools.lru_cache`, dicts among the globals of a file, attributes of classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from torch_gradcheck.borrowing.builtin_content import items_of

DEPTH = 3
"""The number of references followed in search of caches: method → function → function → cache is 3."""

ABSENT = object()
"""Stands for the value of a key that does not exist."""


class CodeCaches:
    """The caches in the code of modules, with their present contents.

    Args:
        modules: the code of their classes is searched; code of torch itself keeps nothing.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        classes = {cls for module in modules for cls in type(module).__mro__ if not _is_torchs(cls)}
        code = _Code()
        for cls in classes:
            for value in vars(cls).values():
                code.into(value, DEPTH)
        self._cached = [(function, function.cache_info().currsize) for function in code.cached.values()]
        self._dicts = [(held, dict(held)) for held in code.dicts.values()]
        self._classes = [(cls, dict(vars(cls))) for cls in classes]

    def restore(self) -> None:
        """Drops every entry with a tensor that was not there before; an `lru_cache` that has grown is emptied."""
        for function, size in self._cached:
            if function.cache_info().currsize > size:
                function.cache_clear()
        for held, content in self._dicts:
            for key, value in _new_tensors(held, content):
                _put(held, key, value)
        for cls, content in self._classes:
            for name, value in _new_tensors(vars(cls), content):
                delattr(cls, name) if value is ABSENT else setattr(cls, name, value)


class _Code:
    """Walks functions and the globals that they name."""

    def __init__(self) -> None:
        self.cached: dict[int, functools._lru_cache_wrapper[Any]] = {}
        self.dicts: dict[int, dict[Any, Any]] = {}
        self._seen: set[int] = set()

    def into(self, value: Any, depth: int) -> None:
        """Notes `value`, attribute of a class or global of a function, if it is a cache; follows it if it is code."""
        if id(value) in self._seen or depth < 0:
            return
        self._seen.add(id(value))
        value = value.__func__ if issubclass(type(value), classmethod | staticmethod) else value
        if issubclass(type(value), functools._lru_cache_wrapper):
            self.cached[id(value)] = value
            self.into(value.__wrapped__, depth)
        elif type(value) is dict:
            self.dicts[id(value)] = value
        elif type(value) is FunctionType and not _is_torchs(value):
            for held in _globals_of(value):
                self.into(held, depth - 1)


def _globals_of(function: FunctionType) -> Iterator[Any]:
    names = function.__globals__
    return (names[name] for name in function.__code__.co_names if name in names)


def _is_torchs(code: Any) -> bool:
    return str(code.__module__).partition(".")[0] in ("torch", "builtins")


def _new_tensors(now: Any, before: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The keys whose values hold a tensor and have changed, each with its former value."""
    return [
        (key, before.get(key, ABSENT))
        for key, value in now.items()
        if value is not before.get(key, ABSENT) and _holds_tensor(value)
    ]


def _holds_tensor(value: Any) -> bool:
    kind = type(value)
    return issubclass(kind, Tensor) or (issubclass(kind, tuple | list) and any(map(_holds_tensor, items_of(value))))


def _put(held: dict[Any, Any], key: Any, value: Any) -> None:
    if value is ABSENT:
        del held[key]
    else:
        held[key] = value
