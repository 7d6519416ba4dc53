"""What lies under a tensor object: its storage, its version counter, and the swap of two tensors' contents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from torch_gradcheck.torch_internals.missing import internal


def swap(one: torch.Tensor, other: torch.Tensor) -> None:
    """Exchanges what two tensor objects stand for: storage, dtype, `.grad`, version counter and graph.

    The Python objects, and the attributes that they have in Python, stay where they are. `torch.utils.swap_tensors`,
    which is public, would exchange those too, and refuses tensors that have weak references or a graph.
    """
    internal(torch._C, "_swap_tensor_impl", "lend a model copies of its tensors")(one, other)


def swapped(one: torch.Tensor, other: torch.Tensor) -> Callable[[], None]:
    """Swaps two tensors; returns what swaps them back."""
    swap(one, other)
    return lambda: swap(one, other)


def version_of(x: torch.Tensor) -> int:
    """How often a tensor, or another that shares its memory, has been written to in place; not so through `.data`."""
    return x._version


def keeping_versions(tensors: Sequence[torch.Tensor]) -> AbstractContextManager[object]:
    """A block behind which tensors count as written to as often as before: who writes there puts them back himself."""
    keep = internal(torch.autograd, "_unsafe_preserve_version_counter", "take back a step that a closure takes")
    kept = ExitStack()
    for tensor in tensors:  # torch 2.6 takes only one
        kept.enter_context(keep(tensor))
    return kept


def storage_key(x: torch.Tensor | torch.UntypedStorage) -> int:
    """A number that two tensors share if and only if they live in one storage, as long as that is alive."""
    storage = x.untyped_storage() if isinstance(x, torch.Tensor) else x
    return storage._cdata  # type: ignore[no-any-return]


def is_wrapper(x: torch.Tensor) -> bool:
    """Whether a tensor is made of other tensors (sharded, quantised, ...) and has no memory of its own."""
    return hasattr(x, "__tensor_flatten__") and hasattr(x, "__tensor_unflatten__")


def is_efficient_zero(x: torch.Tensor) -> bool:
    """Whether a tensor is zeros without memory, as torch makes for tangents of constants: to write to it crashes."""
    test = getattr(x, "_is_zerotensor", None)
    return test is not None and bool(test())


def weak_storage(x: torch.Tensor) -> object:
    """A reference that lets the memory of a tensor go, and keeps its `storage_key` from being given to another."""
    return StorageWeakRef(x.untyped_storage())
