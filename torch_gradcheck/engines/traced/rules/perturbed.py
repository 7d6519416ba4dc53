"""What K perturbations do to one tensor: the box of entries that each of them changes, and what it makes of them.

One coordinate of a weight changes one column of a linear layer's output, and an elementwise operation changes no other
entries. A box holds the values at θ + h·e, or the deltas, which are those minus the values at θ. Deltas pass through
linear operations at a lower cost than values, and with less rounding than in an eager evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Span:
    """The indices starts[k] … starts[k] + length − 1 along one dimension, for perturbation k."""

    __slots__ = ("_common_start", "_index", "length", "starts")

    def __init__(self, starts: NDArray[np.int64], length: int) -> None:
        self.starts = starts
        self.length = length
        self._common_start: int | bool | None = False  # False: not known yet
        self._index: Tensor | None = None

    @property
    def common_start(self) -> int | None:
        """The start of all perturbations; None where they differ."""
        if self._common_start is False:
            first = self.starts[0]
            self._common_start = int(first) if bool((self.starts == first).all()) else None
        return self._common_start

    @property
    def index(self) -> Tensor:
        """Every index, shape (K, length)."""
        if self._index is None:
            starts = torch.from_numpy(self.starts)
            self._index = (
                starts[:, None] if self.length == 1 else starts[:, None] + torch.arange(self.length, device="cpu")
            )
        return self._index

    def same(self, other: Span) -> bool:
        """Whether both hold the same indices for every perturbation."""
        if self is other:
            return True
        return self.length == other.length and bool((self.starts == other.starts).all())

    def shifted(self, offset: int) -> Span:
        """The same indices plus an offset."""
        return Span(self.starts + offset, self.length) if offset else self


Region = tuple[Span | None, ...]
"""For every dimension the indices of the box; None for all of them."""


class Perturbed:
    """A tensor under K perturbations.

    Args:
        base: its value at θ.
        values: shape (K, *extents), the values inside the region; None where `deltas` are given.
        region: a `Span` or None for every dimension of `base`.
        deltas: shape (K, *extents), the values inside the region minus those at θ, in the place of `values`.

    Attributes:
        base: its value at θ.
        region: the indices of the entries that may differ from `base`.
        full: whether every entry is in the region.
        holds_deltas: whether `stored` holds deltas; `values` is then a sum that is taken on first use.
        stored: shape (K, *extents), the deltas or the values.
        owned: whether nothing else reads the memory of `stored`.
        spare: whether, besides, no later operation reads this one, so that the running operation may write there.
    """

    __slots__ = ("_values", "base", "full", "holds_deltas", "owned", "region", "spare", "stored")

    def __init__(
        self, base: Tensor, values: Tensor | None, region: Sequence[Span | None], deltas: Tensor | None = None
    ) -> None:
        self.base = base
        self._values = values
        self.holds_deltas = deltas is not None
        self.stored: Tensor = deltas if deltas is not None else values  # type: ignore[assignment]
        self.owned = False
        self.spare = False
        self.region: Region = tuple(region)
        self.full = not any(self.region)
        if not self.full:
            sizes = base.shape
            self.region = tuple(
                None if span is None or span.length == sizes[d] else span for d, span in enumerate(self.region)
            )
            self.full = not any(self.region)

    @property
    def count(self) -> int:
        """K."""
        return self.stored.shape[0]

    @property
    def values(self) -> Tensor:
        """The values inside the region, shape (K, *extents)."""
        if self._values is None:
            self._values = pick(self.base, self.region) + self.stored
        return self._values

    @property
    def deltas(self) -> Tensor:
        """The values inside the region minus those at θ, shape (K, *extents)."""
        return self.stored if self.holds_deltas else self.stored - pick(self.base, self.region)

    def like(self, base: Tensor, stored: Tensor, region: Sequence[Span | None]) -> Perturbed:
        """The result of a linear operation on this tensor: `stored` are deltas if it holds deltas, else values."""
        return Perturbed(base, None, region, stored) if self.holds_deltas else Perturbed(base, stored, region)

    def unsqueezed(self, d: int) -> Perturbed:
        """The same with a new dimension of size 1 before dimension d."""
        region = (*self.region[:d], None, *self.region[d:])
        return self.like(self.base.unsqueeze(d), self.stored.unsqueeze(d + 1), region)

    def widened(self, dims: Sequence[int] | None = None) -> Perturbed:
        """The same with all indices of these dimensions in the region; of every dimension where none is given."""
        if self.full:
            return self
        dims = range(self.base.ndim) if dims is None else dims
        if all(self.region[d] is None for d in dims):
            return self
        kept = tuple(None if d in dims else span for d, span in enumerate(self.region))
        inner = tuple(span if d in dims else None for d, span in enumerate(self.region))
        if self.holds_deltas:
            extents = [n if span is None else span.length for n, span in zip(self.base.shape, kept, strict=True)]
            whole = self.stored.new_zeros((self.count, *extents))
        else:
            around = pick(self.base, kept)
            whole = around.expand(self.count, *around.shape[1:]).clone(memory_format=torch.contiguous_format)
        return self.like(self.base, place(whole, inner, self.stored), kept)


def pick(base: Tensor, region: Region) -> Tensor:
    """The entries of a tensor in a region, shape (K, *extents), or (1, *extents) where all K boxes are the same."""
    dims = [d for d, span in enumerate(region) if span is not None]
    if not dims:
        return base.unsqueeze(0)
    if all(_common_start(region, d) is not None for d in dims):
        for d in dims:
            base = base.narrow(d, _common_start(region, d) or 0, _length(region, d))
        return base.unsqueeze(0)
    rest = [d for d in range(base.ndim) if d not in dims]
    found = base.permute(*dims, *rest)[tuple(_indices(region, dims))]
    return found.permute(0, *_inverse([*dims, *rest])).contiguous()


def place(whole: Tensor, region: Region, entries: Tensor, accumulate: bool = False) -> Tensor:
    """Write entries into a region of a tensor of shape (K, *sizes), in place, or add them to what is there."""
    dims = [d for d, span in enumerate(region) if span is not None]
    if all(_common_start(region, d) is not None for d in dims):
        target = whole
        for d in dims:
            target = target.narrow(d + 1, _common_start(region, d) or 0, _length(region, d))
        _ = target.add_(entries) if accumulate else target.copy_(entries)
        return whole
    rest = [d for d in range(len(region)) if d not in dims]
    lead = torch.arange(whole.shape[0], device="cpu").reshape(-1, *(1 for _ in dims))
    view = whole.permute(0, *(d + 1 for d in dims), *(d + 1 for d in rest))
    values = entries.permute(0, *(d + 1 for d in dims), *(d + 1 for d in rest))
    at = (lead, *_indices(region, dims))
    view[at] = view[at].add_(values) if accumulate else values
    return whole


def pick_each(whole: Tensor, region: Region) -> Tensor:
    """The entries in a region of a tensor of shape (K, *sizes), those of perturbation k from the k-th part."""
    dims = [d for d, span in enumerate(region) if span is not None]
    if all(_common_start(region, d) is not None for d in dims):
        for d in dims:
            whole = whole.narrow(d + 1, _common_start(region, d) or 0, _length(region, d))
        return whole
    rest = [d for d in range(len(region)) if d not in dims]
    lead = torch.arange(whole.shape[0], device="cpu").reshape(-1, *(1 for _ in dims))
    found = whole.permute(0, *(d + 1 for d in dims), *(d + 1 for d in rest))[(lead, *_indices(region, dims))]
    return found.permute(0, *_inverse([*dims, *rest]))


def _indices(region: Region, dims: list[int]) -> list[Tensor]:
    """An index tensor for every one of `dims`; together they broadcast to (K, length of dims[0], …)."""
    indices = []
    for position, d in enumerate(dims):
        span = region[d]
        if span is not None:
            shape = [1] * len(dims)
            shape[position] = span.length
            indices.append(span.index.reshape(-1, *shape))
    return indices


def _common_start(region: Region, d: int) -> int | None:
    span = region[d]
    return None if span is None else span.common_start


def _length(region: Region, d: int) -> int:
    span = region[d]
    return 0 if span is None else span.length


def _inverse(order: list[int]) -> list[int]:
    """The permutation that undoes `order`, for tensors with a leading batch dimension."""
    back = [0] * len(order)
    for position, d in enumerate(order):
        back[d] = position + 1
    return back
