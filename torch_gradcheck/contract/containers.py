"""Lists and mappings among the arguments of a function: what it has taken out of them, put in, or replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch_gradcheck.borrowing.builtin_content import is_a
from torch_gradcheck.contract.comparison import same_bits
from torch_gradcheck.objective.nested import PLAIN, children_of

DEPTH = 8
"""Containers further down, or in a circle, are not looked at."""


class Containers:
    """The arguments, as they are before the call.

    Args:
        named: each with its name.
    """

    def __init__(self, named: Sequence[tuple[str, Any]]) -> None:
        self._kept = [(name, value, _content(value, DEPTH)) for name, value in named]

    def change(self) -> str:
        """What is another by now, as "takes d['a'] out of d"; "" for nothing."""
        words = [_change(name, before, value) for name, value, before in self._kept]
        return next(filter(None, words), "")


class _Content:
    """The entries of a list, tuple or mapping by their path in it, such as `[0]` and `['mask']`."""

    def __init__(self, kind: type, entries: Mapping[str, Any]) -> None:
        self.kind, self.entries = kind, entries


def _content(value: Any, depth: int) -> Any:
    """What a container holds; anything else itself."""
    if type(value) in PLAIN or not depth or not is_a(value, list, tuple, Mapping):
        return value
    entries = dict(children_of(value))
    makes_them = any(item is not entries.get(path) for path, item in children_of(value))
    if makes_them or hasattr(type(value), "__missing__"):  # reading puts entries in, or gives others every time
        return value
    return _Content(type(value), {path: _content(item, depth - 1) for path, item in entries.items()})


def _change(name: str, before: Any, value: Any) -> str:
    """What is another in an argument, or in an entry of the same name; "" for nothing."""
    if not isinstance(before, _Content):
        return "" if _is_same(before, value) else f"puts another {type(value).__name__} in the place of {name}"
    if type(value) is not before.kind:
        return f"puts a {type(value).__name__} in the place of {name}"
    now = dict(children_of(value))
    lost = [path for path in before.entries if path not in now]
    new = [path for path in now if path not in before.entries]
    if lost:
        gone = f"{name}{lost[0]}" if issubclass(before.kind, Mapping) else _counted(len(lost))
        return f"takes {gone} out of {name}"
    if new:
        return f"puts {name}{new[0]} into {name}"
    words = [_change(name + path, each, now[path]) for path, each in before.entries.items()]
    return next(filter(None, words), "")


def _is_same(before: Any, value: Any) -> bool:
    """Whether an entry is the one that was there, or one of the same numbers: a cast need not be a cast here."""
    if before is value:
        return True
    if is_a(before, torch.Tensor) and is_a(value, torch.Tensor):
        strided = before.layout is torch.strided and value.layout is torch.strided
        return strided and same_bits(before.detach(), value.detach())
    return type(before) in PLAIN and type(before) is type(value) and bool(before == value)


def _counted(entries: int) -> str:
    return "an entry" if entries == 1 else f"{entries} entries"
