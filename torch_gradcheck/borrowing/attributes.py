"""Attributes of modules and objects: remembered, put back in the end, and reset between evaluations of J."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from torch_gradcheck.borrowing.builtin_content import attributes_of, content_of, drop_item, is_a, put_item, refill
from torch_gradcheck.borrowing.captures import Captures

ABSENT = object()
"""Stands for the value of an attribute or key that does not exist."""


class AttributeStates:
    """The contents of attributes (flags, hooks, counters), containers and numpy arrays of a model, as they are now.

    Args:
        captures: the modules, objects, containers and arrays.
    """

    def __init__(self, captures: Captures) -> None:
        holders = (*captures.modules.values(), *captures.objects.values())
        held = [(id(holder), attributes_of(holder)) for holder in holders] + list(captures.containers.items())
        self._held = [each for _, each in held if each is not None]
        self._of_steppers = [each for key, each in held if each is not None and key in captures.of_steppers]
        self._first = [content_of(held) for held in self._held]
        self._arrays = [(array, array.copy()) for array in captures.arrays.values() if array.flags.writeable]
        self.start()

    def start(self) -> None:
        """Takes the present contents, in the mode of the check, for the state that every evaluation starts from."""
        self._start = [content_of(held) for held in self._held]
        self._last = self._start
        self._steppers = [(held, content_of(held)) for held in self._of_steppers]
        self._tensor_names = [
            (names, name, value)
            for names in self._held
            if isinstance(names, dict)
            for name, value in content_of(names).items()
            if is_a(value, torch.Tensor)
        ]
        self._cache_attributes: list[tuple[dict[Any, Any], Any, Any]] = []
        self._changed_once: list[tuple[dict[Any, Any], Any, Any]] = []
        self._grown_containers: list[tuple[Any, Any]] = []

    def learn_caches(self) -> None:
        """After each of the first three evaluations, learns what to reset before the next.

        These are attributes that hold a new tensor each time; attributes that changed once and then stayed, where one
        of them holds a tensor (a cache and the flag that it is filled); and lists of tensors that have changed. A
        plain number that changes every time (a counter) is not reset: a J that depends on it is reported as
        non-deterministic.
        """
        now = [content_of(held) for held in self._held]
        for held, start, last, new in zip(self._held, self._start, self._last, now, strict=True):
            if isinstance(held, dict):
                self._learn_names(held, start, last, new)
            elif not _same_items(held, start) and any(is_a(value, torch.Tensor) for value in (*new, *start)):
                self._grown_containers.append((held, start))
        self._last = now
        if any(is_a(dict.get(held, name), torch.Tensor) for held, name, _ in self._changed_once):
            self._cache_attributes += self._changed_once
        self._changed_once = []

    def _learn_names(
        self, held: dict[Any, Any], start: dict[Any, Any], last: dict[Any, Any], new: dict[Any, Any]
    ) -> None:
        for name, value in new.items():
            before, first = last.get(name, ABSENT), start.get(name, ABSENT)
            if value is before and value is not first:
                self._changed_once.append((held, name, first))
            elif value is not before and before is not first and is_a(value, torch.Tensor):
                self._cache_attributes.append((held, name, first))

    def restore(self) -> None:
        """Puts the first contents back: the same objects under the same names, arrays with the same bytes."""
        _refill_changed(zip(self._held, self._first, strict=True))
        for array, first in self._arrays:
            if array.tobytes() != first.tobytes():
                array[...] = first

    def rewind(self) -> None:
        """Resets attributes that held a tensor to that tensor; learned caches and optimizers to what they held.

        A step of an optimizer that J takes is then the same one in every evaluation.
        """
        for names, name, tensor in self._tensor_names:
            if dict.get(names, name) is not tensor:
                put_item(names, name, tensor)
        for names, name, value in self._cache_attributes:
            if value is ABSENT:
                drop_item(names, name)
            else:
                put_item(names, name, value)
        _refill_changed([*self._grown_containers, *self._steppers])


def _refill_changed(contents: Iterable[tuple[Any, Any]]) -> None:
    for container, content in contents:
        if not _same_items(container, content):
            refill(container, content)


def _same_items(container: Any, content: Any) -> bool:
    now = content_of(container)
    if isinstance(content, dict):
        now, content = [*now, *now.values()], [*content, *content.values()]  # keys too may be tensors, which == adds up
    return len(now) == len(content) and all(one is other for one, other in zip(now, content, strict=True))
