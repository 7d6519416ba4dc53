"""Copies of the caller's tensors in the precision of the check, and the swap that puts them in place.

Swap, never write. `swap` exchanges what two tensor objects stand for. The caller's Parameter objects stay the same
Python objects, so that optimizers, tied weights, captured lists and closures all see the copies. Their former contents
lie untouched aside, with storage, `.grad`, hooks, version counter and the graphs that were built on them, and are
swapped back in the end. Until then they are what the copies of parameters are put back from, so that no third copy of a
large model is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.layout_copies import extent, has_natural_layout, strided_copy
from torch_gradcheck.precision.dtypes import in_precision
from torch_gradcheck.torch_internals.autograd import (
    connect_hooks,
    keep_post_accumulate_hooks,
    restore_hooks,
    tensor_hooks,
)
from torch_gradcheck.torch_internals.dispatch import modes_disabled
from torch_gradcheck.torch_internals.tensors import is_wrapper, storage_key, swap, version_of
from torch_gradcheck.torch_internals.transforms import is_wrapped


class TensorCopies:
    """Copies of tensors, and the swap that puts them in place.

    Args:
        tensors: the caller's. Sparse, meta and quantised ones are left alone, and what vmap or another transform has
            left behind, which no longer stands for numbers.
        dtype: the precision of the copies; None: each tensor's own, and its strides too.
        values: tensor → the numbers that its copy holds in place of the tensor's own; with dtype None in their dtype.
        apart: those whose copies share memory with no other one.
        device: of the copies; None: that of their values.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        dtype: torch.dtype | None,
        values: Mapping[torch.Tensor, torch.Tensor],
        apart: Sequence[torch.Tensor] = (),
        device: torch.device | None = None,
    ) -> None:
        self._tensors = [tensor for tensor in dict.fromkeys(tensors) if _can_be_copied(tensor)]
        with torch.no_grad():
            self._others = _copies(self._tensors, dtype, values, apart, device)
            kept = [not _stays(tensor) or tensor in values for tensor in self._tensors]
            self._kept = [
                other.detach().clone() if own else None for other, own in zip(self._others, kept, strict=True)
            ]
        self._hooks = [tensor_hooks(tensor) for tensor in self._tensors]
        self._restore_post_accumulate = [keep_post_accumulate_hooks(tensor) for tensor in self._tensors]
        self._positions = {id(tensor): position for position, tensor in enumerate(self._tensors)}
        self._swapped = 0
        self._homes: list[torch.Tensor | None] = []
        self._versions: list[int] = []
        self._always_reset = set(range(len(self._tensors)))

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor object is one of those that are copied."""
        return id(tensor) in self._positions

    def first(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The first values of a copy, to be read only, in a dtype and on a device of their own; None of other tensors.

        They are what `rewind` puts back: as a rule the caller's own contents, which lie aside. Valid while swapped in.
        """
        position = self._positions.get(id(tensor))
        return None if position is None else self._first(position)

    def _first(self, position: int) -> torch.Tensor:
        kept = self._kept[position]
        return self._others[position].detach() if kept is None else kept

    def swap_in(self) -> None:
        """Has every tensor object stand for its copy."""
        for tensor, other in zip(self._tensors, self._others, strict=True):
            swap(tensor, other)
            self._swapped += 1
            connect_hooks(tensor)
        self._homes = [None if is_wrapper(tensor) else tensor.data for tensor in self._tensors]
        self._versions = [version_of(tensor) for tensor in self._tensors]

    def take_for_first(self) -> None:
        """Has `rewind` put back what the copies hold now."""
        with torch.no_grad():
            for position in self._changed():
                self._kept[position] = self._tensors[position].detach().clone()

    def are_moved(self) -> bool:
        """Whether a copy holds other values than the first ones."""
        return bool(self._changed())

    def _changed(self) -> set[int]:
        """The positions of the copies that hold other values than the first ones."""
        pairs = [(tensor, self._first(position)) for position, tensor in enumerate(self._tensors)]
        return {position for position, (now, first) in enumerate(pairs) if not _equal(now, first)}

    def at_first(self) -> FirstValues:
        """A block inside of which the copies hold their first values, and after which they hold the present ones."""
        return FirstValues(self._tensors, [self._first(position) for position in range(len(self._tensors))])

    def swap_back(self) -> None:
        """Has every tensor object stand for its own contents again."""
        while self._swapped:
            self._swapped -= 1
            tensor, other = self._tensors[self._swapped], self._others[self._swapped]
            swap(tensor, other)
            restore_hooks(tensor, self._hooks[self._swapped])
            self._restore_post_accumulate[self._swapped]()

    def have_gradients(self) -> bool:
        """Whether a backward has accumulated in the `.grad` of a leaf."""
        return any(tensor.grad is not None for tensor in self._tensors if tensor.is_leaf)

    def drop_gradients(self) -> None:
        """Sets every `.grad` to None."""
        for tensor in self._tensors:
            tensor.grad = None

    def learn_what_changes(self) -> None:
        """After the first evaluation: notes the copies that it changed, to be reset after every evaluation.

        Version counters do not tell of all: torch's batch norms write to running statistics and leave them as they are.
        """
        self._always_reset = self._changed()

    def rewind(self) -> None:
        """Puts the first values back into copies that an evaluation wrote to.

        A forward that calls `module.to(dtype)` gives parameters other memory: a perturbation is put back in their own.
        """
        for position, tensor in enumerate(self._tensors):
            home = self._homes[position]
            if home is not None and storage_key(tensor) != storage_key(home):
                tensor.data = home
                self._versions[position] = version_of(tensor)
            written = position in self._always_reset or version_of(tensor) != self._versions[position]
            if written or is_freed(tensor):
                write_back(tensor, self._first(position))
                self._versions[position] = version_of(tensor)


class FirstValues:
    """See `TensorCopies.at_first`; a class and not a generator, which an interrupt could leave behind."""

    def __init__(self, tensors: Sequence[torch.Tensor], first: Sequence[torch.Tensor]) -> None:
        self._tensors, self._first = tensors, first
        self._now = [tensor.detach().clone() for tensor in tensors]

    def __enter__(self) -> None:
        self._put(self._first)

    def __exit__(self, *exception: object) -> None:
        self._put(self._now)

    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for tensor, each in zip(self._tensors, values, strict=True):
            tensor.data.copy_(each)


def is_freed(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor has been let go, as reversible layers do with their inputs."""
    return tensor.layout is torch.strided and not tensor.untyped_storage().nbytes() and tensor.numel() > 0


def write_back(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """A tensor holds these values, unseen by autograd, in its old memory or, where it was freed, in new one."""
    if is_freed(tensor):
        tensor.untyped_storage().resize_(extent(tensor)[1] * tensor.element_size())
    with torch.no_grad():
        tensor.data.copy_(values)


def _stays(tensor: torch.Tensor) -> bool:
    """Whether nobody writes to the caller's tensor while its copy is lent, so that its first values can be read there.

    So it is with parameters. Arrays may share the memory of a batch, and other processes that of a model.
    """
    lies_plainly = not (is_wrapper(tensor) or tensor.is_conj() or tensor.is_neg() or tensor.is_shared())
    return lies_plainly and (isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf))


def _equal(now: torch.Tensor, first: torch.Tensor) -> bool:
    with modes_disabled():  # a mode of the check would take note of the cast
        return not is_freed(now) and torch.equal(now, first.to(now))


def _can_be_copied(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized or is_wrapped(tensor))


def _copies(
    tensors: Sequence[torch.Tensor],
    dtype: torch.dtype | None,
    values: Mapping[torch.Tensor, torch.Tensor],
    apart: Sequence[torch.Tensor],
    device: torch.device | None,
) -> list[torch.Tensor]:
    """A copy of each tensor, or of its entry in `values` where it has one; moved before it is cast.

    The copies of a parameter and of a tensor that shares its memory (a buffer made of `weight.data`) share memory, too:
    a value for one of them is seen in the other.
    """
    alone = {id(tensor) for tensor in apart}
    together = _seen_by_others([tensor for tensor in tensors if id(tensor) not in alone])
    storages: dict[tuple[Any, ...], torch.Tensor] = {}
    copies = []
    for tensor in tensors:
        memory, held = _memory(tensor), values.get(tensor, tensor).to(device)
        lent_in = in_precision(held.dtype, dtype)
        if id(tensor) not in together:
            as_laid_out = dtype is None and not has_natural_layout(held)
            copy = strided_copy(held.detach()) if as_laid_out else held.detach().to(lent_in, copy=True)
        else:
            if memory not in storages:
                storages[memory] = _at(tensor, tensor.untyped_storage()).to(device).to(lent_in, copy=True)
            place = (tensor.storage_offset(), tensor.shape, tensor.stride())
            copy = _at(storages[memory], storages[memory].untyped_storage(), *place)
            if held is not tensor:
                copy.copy_(held)
        copies.append(copy.requires_grad_(tensor.requires_grad))
    return copies


def _seen_by_others(tensors: Sequence[torch.Tensor]) -> set[int]:
    """The ids of parameters whose memory is shared by tensors that require no gradient, and the ids of those tensors.

    Two parameters on the same memory get separate copies: each has a gradient of its own.
    """
    owners: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.requires_grad and tensor.is_leaf:
            group = owners.setdefault(_memory(tensor), [])
            if not any(_overlap(tensor, other) for other in group):
                group.append(tensor)
    seen = [tensor for tensor in tensors if not tensor.requires_grad and _memory(tensor) in owners]
    return {id(tensor) for tensor in seen} | {id(owner) for tensor in seen for owner in owners[_memory(tensor)]}


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    (start, end), (other_start, other_end) = extent(one), extent(other)
    return start < other_end and other_start < end


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A key that is equal for tensors that may share memory."""
    address = tensor.untyped_storage().data_ptr()
    as_it_is = not (tensor.is_conj() or tensor.is_neg())
    return (tensor.device, tensor.dtype, address if address and as_it_is else id(tensor))


def _at(like: torch.Tensor, storage: torch.UntypedStorage, *place: Any) -> torch.Tensor:
    """A tensor of its own, no view, on a storage: at offset, shape and stride, or all of it one after the other."""
    return torch.empty(0, dtype=like.dtype, device=like.device).set_(storage, *place)
