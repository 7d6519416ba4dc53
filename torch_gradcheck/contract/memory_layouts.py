"""Memory layouts that other code hands on: the same numbers with other strides, or one number for many entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from torch_gradcheck.precision.dtypes import is_inexact

Layout = Callable[[torch.Tensor], torch.Tensor | None]
"""Gives a tensor in another layout, without a graph; None where there is no such layout of it."""


def transposed(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same numbers, the first dimension innermost: `x.t()` of a matrix."""
    if tensor.dim() < 2 or not tensor.numel():
        return None
    order = list(range(tensor.dim()))[::-1]
    found = tensor.detach().permute(order).contiguous().permute(order)
    return None if found.is_contiguous() else found


def sliced(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same numbers, others of them between them and before the first: `x[..., 1::2]`."""
    if not tensor.numel():
        return None
    numbers = tensor.detach()
    between = numbers.reshape(-1).flip(0).reshape(numbers.shape)  # so that indices stay in their range
    other = between + 3 if is_inexact(numbers) else between
    return torch.stack([other, numbers], dim=-1)[..., 1]


def first_two_swapped(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same numbers, as sequences that are handed on with the batch first, and lie in memory with the time first."""
    return _swapped(tensor, 0, 1)


def last_two_swapped(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same numbers, every matrix transposed in memory: `x.mT`."""
    return _swapped(tensor, -2, -1)


def _swapped(tensor: torch.Tensor, one: int, other: int) -> torch.Tensor | None:
    """None for a matrix, which is transposed then."""
    if tensor.dim() < 3 or not tensor.numel():
        return None
    found = tensor.detach().transpose(one, other).contiguous().transpose(one, other)
    return None if found.is_contiguous() else found


def lazily_conjugated(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same complex numbers; their conjugates lie in memory, under torch's conj bit."""
    return tensor.detach().conj().resolve_conj().conj() if tensor.is_complex() else None


def expanded(tensor: torch.Tensor) -> torch.Tensor | None:
    """Other numbers: the first slice along a dimension, repeated with a stride of 0, as by `x[:1].expand(n, -1)`."""
    longer = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    return _repeated(tensor, longer[0]) if longer and tensor.numel() else None


def expanded_in_the_last(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same along the last dimension, as `y.sum(-1)` sends its gradient; None where `expanded` does that."""
    longer = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    has_it = len(longer) > 1 and longer[-1] == tensor.dim() - 1 and tensor.numel()
    return _repeated(tensor, longer[-1]) if has_it else None


def _repeated(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.detach().narrow(dim, 0, 1).clone().expand_as(tensor)


def of_a_sum(tensor: torch.Tensor) -> torch.Tensor | None:
    """One number with strides of 0, the first of the tensor: the gradient that `.sum().backward()` sends."""
    return tensor.detach().reshape(-1)[:1].clone().reshape(()).expand(tensor.shape) if tensor.numel() > 1 else None


def channels_last(tensor: torch.Tensor) -> torch.Tensor | None:
    """Images with the channels innermost, as models in `torch.channels_last` hand them on."""
    return _in_format(tensor, 4, torch.channels_last)


def channels_last_3d(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same for volumes."""
    return _in_format(tensor, 5, torch.channels_last_3d)


def _in_format(tensor: torch.Tensor, dims: int, memory_format: torch.memory_format) -> torch.Tensor | None:
    if tensor.dim() != dims or not tensor.numel():
        return None
    found = tensor.detach().clone(memory_format=memory_format)
    return None if found.is_contiguous() else found


SAME_NUMBERS: Mapping[str, Layout] = {
    "transposed": transposed,
    "sliced": sliced,
    "with its first two dimensions swapped in memory": first_two_swapped,
    "with its last two dimensions swapped in memory": last_two_swapped,
    "in channels_last": channels_last,
    "in channels_last_3d": channels_last_3d,
    "lazily conjugated": lazily_conjugated,
}
"""Name → a layout of the same numbers."""

EXPANDED: Mapping[str, Layout] = {
    "expanded": expanded,
    "expanded in its last dimension": expanded_in_the_last,
}
"""Name → a layout of other numbers, that are repeated."""


def in_words(tensor: torch.Tensor) -> str:
    """The shape and the strides, as "shape (3, 4), strides (1, 3)"."""
    return f"shape {tuple(tensor.shape)}, strides {tuple(tensor.stride())}"
