"""Which value a piece of memory holds: views, aliases and in-place writes told apart while J is recorded.

A tensor is a view of a storage: offset, sizes, strides. Two tensors with the same view are one value, however they came
about (`detach`, `.data`, a tensor that autograd saved). A write through one view outdates the views that overlap it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from torch_gradcheck.engines.traced.recording.tape import Ref, Tape
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.torch_internals.tensors import storage_key


class MemoryView(NamedTuple):
    """Which entries of its storage a tensor holds, and in which order."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    flags: tuple[bool, bool]  # lazily conjugated, lazily negated

    @classmethod
    def of(cls, x: Tensor) -> MemoryView:
        """The view that x is."""
        return cls(int(x.storage_offset()), tuple(x.shape), x.stride(), x.dtype, (x.is_conj(), x.is_neg()))

    def covers(self, storage: torch.UntypedStorage) -> bool:
        """Whether the view holds every byte of the storage once."""
        size = 1
        for s in self.shape:
            size *= s
        sees_all = self.offset == 0 and size * self.dtype.itemsize == storage.nbytes()
        return sees_all and self.flags == (False, False) and self._order() is not None

    def _order(self) -> tuple[int, ...] | None:
        """Dimensions in the order of memory; None where entries overlap or leave gaps."""
        order = sorted((d for d in range(len(self.shape)) if self.shape[d] != 1), key=lambda d: -self.strides[d])
        expected = 1
        for d in reversed(order):
            if self.strides[d] != expected:
                return None
            expected *= self.shape[d]
        return (*(d for d in range(len(self.shape)) if self.shape[d] == 1), *order)

    def memory_order(self) -> tuple[int, ...]:
        """Dimensions from the one with the largest stride to the one with the smallest.

        Raises:
            Untraceable: entries overlap or leave gaps.
        """
        order = self._order()
        if order is None:
            raise Untraceable("a write into memory with gaps or overlaps")
        return order


@dataclass(slots=True)
class Memory:
    """One storage: the values its current content has, by view."""

    storage: torch.UntypedStorage  # kept alive, so that its address is not used again while J is recorded
    values: dict[MemoryView, int] = field(default_factory=dict)
    whole: tuple[MemoryView, int] | None = None  # a value of the whole storage, before the `writes`
    writes: list[tuple[MemoryView, int]] = field(default_factory=list)

    def replace(self, values: dict[MemoryView, int]) -> None:
        """Set the content to these values and nothing else."""
        self.values, self.whole, self.writes = values, None, []

    def numbers(self) -> list[int]:
        """Numbers of all values that the content consists of."""
        whole = [self.whole[1]] if self.whole is not None else []
        return [*self.values.values(), *whole, *(number for _, number in self.writes)]

    def covering(self) -> tuple[MemoryView, int] | None:
        """A current value of the whole storage; None where there is none."""
        return next(((view, number) for view, number in self.values.items() if view.covers(self.storage)), None)


class AliasTracker:
    """Maps tensors to values of a tape while J runs."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._memory: dict[int, Memory] = {}

    def memory(self, x: Tensor) -> Memory:
        """What is known of x's storage.

        Raises:
            Untraceable: x is not strided.
        """
        if x.layout != torch.strided:
            raise Untraceable(f"a tensor with layout {x.layout}")
        storage = x.untyped_storage()
        key = storage_key(storage)
        if key not in self._memory:
            self._memory[key] = Memory(storage)
        return self._memory[key]

    def value(self, x: Tensor) -> int:
        """The number of the value that x holds now."""
        memory, view = self.memory(x), MemoryView.of(x)
        if view not in memory.values:
            memory.values[view] = self._derive(memory, view, x)
        return memory.values[view]

    def holds(self, x: Tensor) -> bool:
        """Whether this very view has been seen since the last write to its storage."""
        memory = self._memory.get(storage_key(x))
        return memory is not None and MemoryView.of(x) in memory.values

    def bind(self, x: Tensor, number: int) -> None:
        """Take in that x, a new result or a view, holds this value."""
        self.memory(x).values[MemoryView.of(x)] = number

    def depends(self, x: Tensor) -> bool:
        """Whether x depends on some parameter."""
        if x.layout != torch.strided:
            raise Untraceable(f"a tensor with layout {x.layout}")
        memory = self._memory.get(storage_key(x))
        if memory is None:
            return False
        number = memory.values.get(MemoryView.of(x))
        if number is not None:
            return self.tape.depends[number]
        return any(self.tape.depends[n] for n in memory.numbers())

    def before_write(self, x: Tensor) -> None:
        """Copy the constants that live in x's storage, which is about to change."""
        memory = self._memory.get(storage_key(x))
        for number in memory.numbers() if memory is not None else ():
            if number in self.tape.constants:
                self.tape.constants[number] = self.tape.constants[number].clone()

    def overwrite(self, x: Tensor) -> None:
        """Take in that x's memory was written with something that depends on no parameter."""
        memory = self._memory.get(storage_key(x))
        if memory is None:
            return
        if any(self.tape.depends[number] for number in memory.numbers()):
            self.write(x, self.tape.constant(x.clone()))
        else:
            memory.replace({})

    def share(self, x: Tensor) -> None:
        """Take in that others than torch share the memory of x, a constant: it is read anew after every write.

        Raises:
            Untraceable: other entries of that memory depend on a parameter.
        """
        memory = self._memory.get(storage_key(x))
        if memory is None:
            return
        in_part = any(self.tape.depends[number] for number in memory.numbers())
        if in_part and not MemoryView.of(x).covers(memory.storage):
            raise Untraceable("memory shared with others than torch that depends on a parameter in part")
        memory.replace({})

    def write(self, x: Tensor, number: int) -> None:
        """Take in that x's memory now holds this value: views that overlap it are out of date."""
        memory, view = self.memory(x), MemoryView.of(x)
        if view.covers(memory.storage):
            memory.replace({view: number})
            return
        if memory.whole is None:
            memory.whole, memory.writes = self._whole(memory, x), []
        memory.writes.append((view, number))
        kept = {other: n for other, n in memory.values.items() if not overlap(other, view)}
        memory.values = {**kept, view: number}

    def _derive(self, memory: Memory, view: MemoryView, x: Tensor) -> int:
        """The value of a view not seen before: a constant if no parameter matters, else read from the whole storage."""
        if not any(self.tape.depends[number] for number in memory.numbers()):
            return self.tape.constant(x)
        root, value = self._whole(memory, x)
        if view == root:
            return value
        if view.dtype != root.dtype or view.flags != root.flags:
            raise Untraceable("memory that is read under another dtype than it was written")
        (number,) = self.tape.record(read_view, (Ref(value), root, view))
        return number

    def _whole(self, memory: Memory, x: Tensor) -> tuple[MemoryView, int]:
        """A current value of the whole storage; put together from the known pieces where there is none."""
        found = memory.covering()
        if found is not None:
            return found
        if memory.whole is not None:
            (root, value), pieces = memory.whole, memory.writes
        else:
            whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(memory.storage)
            root, value = MemoryView.of(whole), self.tape.constant(whole.clone())
            pieces = [(view, number) for view, number in memory.values.items() if self.tape.depends[number]]
        for view, number in pieces:
            (value,) = self.tape.record(scatter_view, (Ref(value), root, Ref(number), view))
        memory.values[root], memory.whole, memory.writes = value, None, []
        return root, value


def overlap(one: MemoryView, other: MemoryView) -> bool:
    """Whether two views of one storage share an entry."""
    if one.dtype != other.dtype:
        return True
    ends = [
        view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)) for view in (one, other)
    ]
    if ends[0] < other.offset or ends[1] < one.offset:
        return False
    seen = np.zeros(max(ends) + 1, dtype=bool)
    as_strided(seen[one.offset :], one.shape, one.strides)[...] = True
    return bool(as_strided(seen[other.offset :], other.shape, other.strides).any())


def read_view(x: Tensor, seen: MemoryView, wanted: MemoryView, lead: int = 0) -> Tensor:
    """The entries of x's storage that another view holds.

    Args:
        x: values of a view that covers the storage, with `lead` batch dimensions before them.
        seen: the view that x is.
        wanted: the other view.
        lead: the number of batch dimensions.
    """
    flat = _flat(x, seen, lead)
    sizes, strides = (*flat.shape[:lead], *wanted.shape), (*flat.stride()[:lead], *wanted.strides)
    return flat.as_strided(sizes, strides, flat.storage_offset() + wanted.offset)


def scatter_view(x: Tensor, seen: MemoryView, entries: Tensor, written: MemoryView, lead: int = 0) -> Tensor:
    """x with the entries that the view `written` holds replaced; the arguments are those of `read_view`."""
    flat = _flat(x, seen, lead).clone(memory_format=torch.contiguous_format)
    sizes, strides = (*flat.shape[:lead], *written.shape), (*flat.stride()[:lead], *written.strides)
    flat.as_strided(sizes, strides, written.offset).copy_(entries)
    order = seen.memory_order()
    back = [0] * len(order)
    for position, d in enumerate(order):
        back[d] = position
    in_order = flat.reshape(*flat.shape[:lead], *(seen.shape[d] for d in order))
    return in_order.permute([*range(lead), *(lead + d for d in back)])


def _flat(x: Tensor, seen: MemoryView, lead: int) -> Tensor:
    """x as one dimension in the order of its storage."""
    order = seen.memory_order()
    in_order = x.permute([*range(lead), *(lead + d for d in order)])
    return in_order.contiguous().reshape(*x.shape[:lead], -1)
