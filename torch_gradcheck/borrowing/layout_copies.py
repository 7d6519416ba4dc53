"""Copies of tensors in the memory layout of the originals: strides, alignment, and memory that some of them share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.borrowing.reach import is_ordinary
from torch_gradcheck.torch_internals.tensors import is_wrapper

ALIGNMENT = 64
"""Bytes that torch aligns new memory to, at least; kernels load up to so many at once, where an address allows that."""

NATURAL = 16
"""Bytes that the memory of an ordinary tensor is aligned to, whoever has made it."""


def strided_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, as far as they can be written to; no view, and no leaf where it has a graph."""
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return tensor.clone()
    memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return memory.copy_(tensor)


def has_natural_layout(tensor: torch.Tensor) -> bool:
    """Whether `clone()` gives the layout of the tensor: entries side by side, whatever their order, and aligned."""
    if not has_layout(tensor):
        return True
    dense = torch.empty_like(tensor).stride() == tensor.stride()
    return dense and not (tensor.is_conj() or tensor.is_neg()) and tensor.data_ptr() % NATURAL == 0


def has_layout(tensor: torch.Tensor) -> bool:
    """Whether a tensor has entries, and they lie in memory by strides."""
    return is_ordinary(tensor) and not is_wrapper(tensor) and tensor.numel() > 0


def layout_copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies without graphs, in new memory laid out like that of the tensors, overlapping where theirs does.

    Each has the strides, the conj bit and the alignment of its original. Of a storage that several tensors
    lie in, one copy is made, in which all of them lie.

    Args:
        tensors: those without strides are cloned.
    """
    memories: dict[int, _Memory] = {}
    for tensor in filter(has_layout, tensors):
        key = tensor.untyped_storage().data_ptr()
        memories.setdefault(key, _Memory(key)).take_in(tensor)
    return [
        memories[tensor.untyped_storage().data_ptr()].copy_of(tensor) if has_layout(tensor) else tensor.detach().clone()
        for tensor in tensors
    ]


class _Memory:
    """The part of a storage that tensors lie in, and a copy of it."""

    def __init__(self, address: int) -> None:
        self._address = address
        self._start, self._end = 0, 0
        self._storage: torch.UntypedStorage | None = None

    def take_in(self, tensor: torch.Tensor) -> None:
        """Widens the part, in bytes, to hold this tensor."""
        start, end = extent(tensor)
        start, end = start * tensor.element_size(), end * tensor.element_size()
        known = self._end > 0
        self._start, self._end = (min(self._start, start), max(self._end, end)) if known else (start, end)

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of its own, no view, in the copy, which is made when it is first asked for."""
        if self._storage is None:
            self._storage = self._copy(tensor.untyped_storage(), tensor.device)
        offset = tensor.storage_offset() - (self._start - self._pad) // tensor.element_size()
        plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        plain = plain.set_(self._storage, offset, tensor.shape, tensor.stride())
        plain = plain.conj() if tensor.is_conj() else plain
        return plain.neg() if tensor.is_neg() else plain

    @property
    def _pad(self) -> int:
        """Bytes in front of the part in its copy, so that it is aligned like the original."""
        return (self._address + self._start) % ALIGNMENT

    def _copy(self, storage: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
        memory = torch.zeros(self._pad + self._end - self._start, dtype=torch.uint8, device=device)
        whole = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        memory[self._pad :].copy_(whole[self._start : self._end])
        return memory.untyped_storage()


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first index of a tensor in its storage, and the index after its last."""
    length = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    start = int(tensor.storage_offset())
    return start, start + (int(length) if tensor.numel() else 0)
