"""Places that code can read and write, each with what it held in the beginning, to tell whether it still holds that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import Any

import torch

from torch_gradcheck.torch_internals.tensors import storage_key, version_of
from torch_gradcheck.torch_internals.transforms import is_wrapped

NUMBERS = (int, float)


@dataclass(eq=False)
class Watch:
    """A place that holds things: a container, the attributes of an object, the cells and globals of a function.

    Attributes:
        read: gives what it holds now; the keys of a mapping, too.
        before: what it held in the beginning.
        tallies: positions of numbers that move on from one evaluation of J to the next, which J therefore does not
            read; None where the whole place counts in this way.
    """

    read: Callable[[], list[Any]]
    before: list[Any] = field(init=False)
    tallies: frozenset[int] | None = frozenset()

    def __post_init__(self) -> None:
        self.before = self.read()

    def is_as_before(self) -> bool:
        """Whether it holds the same things, tallies aside."""
        if self.tallies is None:
            return True
        now, before = self.read(), self.before
        if len(now) != len(before):
            return False
        return all(map(is_, now, before)) or self._differences(now) <= self.tallies

    def learn_tallies(self) -> None:
        """After an evaluation of J that has been rewound: notes which numbers have moved on."""
        now, before = self.read(), self.before
        if {type(item) for item in (*now, *before)} <= {*NUMBERS, str}:
            self.tallies = self.tallies if now == before else None
        elif len(now) == len(before):
            moved = self._differences(now)
            self.tallies = frozenset(k for k in moved if type(now[k]) in NUMBERS and type(before[k]) in NUMBERS)

    def _differences(self, now: list[Any]) -> set[int]:
        pairs = enumerate(zip(now, self.before, strict=True))
        return {k for k, (new, old) in pairs if new is not old and not _equal_numbers(new, old)}


def _equal_numbers(one: Any, other: Any) -> bool:
    return type(one) is type(other) and type(one) in (*NUMBERS, str) and one == other


class Reach:
    """What one module can get at.

    Args:
        watches: the places that it can read and write.
        tensors: the tensors, each with its version and address in the beginning.
    """

    def __init__(self, watches: list[Watch], tensors: list[tuple[torch.Tensor, tuple[int, int]]]) -> None:
        self.watches = watches
        self._tensors, self._marks = [tensor for tensor, _ in tensors], [mark for _, mark in tensors]

    def is_as_before(self) -> bool:
        """Whether everything is what it was in the beginning."""
        if [mark_of(tensor) for tensor in self._tensors] != self._marks:
            return False
        if self._are_same():
            return True
        return all(map(Watch.is_as_before, self.watches))

    @cached_property
    def storages(self) -> frozenset[int]:
        """The `storage_key` of every tensor."""
        return frozenset(storage_key(tensor) for tensor in self._tensors)

    def _are_same(self) -> bool:
        """Whether all places hold the very same things, a faster question than whether they are as before."""
        now, sizes = list[Any](), list[int]()
        for read in self._reads:
            held = read()
            now += held
            sizes.append(len(held))
        return sizes == self._sizes and all(map(is_, now, self._before))

    @cached_property
    def _reads(self) -> list[Callable[[], list[Any]]]:
        return [watch.read for watch in self.watches]

    @cached_property
    def _before(self) -> list[Any]:
        return [item for watch in self.watches for item in watch.before]

    @cached_property
    def _sizes(self) -> list[int]:
        return [len(watch.before) for watch in self.watches]


def is_ordinary(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory of its own, which can be compared and copied."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return False
    return not is_wrapped(tensor)


def mark_of(tensor: torch.Tensor) -> tuple[int, int]:
    """What changes where a tensor is written to, or given other memory."""
    return version_of(tensor), tensor.data_ptr()
