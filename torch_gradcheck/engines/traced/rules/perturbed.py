"""What K perturbations do to one tensor: the box of entries each of them touches, and the new values there.

One coordinate of a weight touches one column of a linear layer's output, and an elementwise operation leaves that
so. A box holds the values at θ + h·e, or how far they moved from those at θ: through linear operations the moves cost
less, and they are rounded less than the values of a plain evaluation are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Span:
    """The indices starts[k] … starts[k] + length − 1 along one dimension, for perturbation k."""

    __slots__ = ("_index", "_only", "length", "starts")

    def __init__(self, starts: NDArray[np.int64], length: int) -> None:
        self.starts = starts
        self.length = length
        self._only: int | bool | None = False  # False: not known yet
        self._index: Tensor | None = None

    @property
    def only(self) -> int | None:
        """The start, if it is the same for all perturbations."""
        if self._only is False:
            first = self.starts[0]
            self._only = int(first) if bool((self.starts == first).all()) else None
        return self._only

    @property
    def index(self) -> Tensor:
        """Shape (K, length): every index."""
        if self._index is None:
            starts = torch.from_numpy(self.starts)
            self._index = (
                starts[:, None] if self.length == 1 else starts[:, None] + torch.arange(self.length, device="cpu")
            )
        return self._index

    def same(self, other: Span) -> bool:
        """Whether these are the same indices for every perturbation."""
        if self is other:
            return True
        return self.length == other.length and bool((self.starts == other.starts).all())

    def shifted(self, offset: int) -> Span:
        """All starts moved by an offset."""
        return Span(self.starts + offset, self.length) if offset else self


Region = tuple[Span | None, ...]
"""For every dimension the indices touched; None for all of them."""


class Perturbed:
    """A tensor under K perturbations.

    Args:
        base: its value at θ.
        new: shape (K, *extents), the values inside the region; None where `moved` is given.
        region: a `Span` or None for every dimension of `base`.
        moved: how far the values inside the region moved, in the place of `new`.

    Attributes:
        base: its value at θ.
        region: the indices touched; outside them, `base` holds.
        full: whether every entry is in the region.
        is_moves: whether it holds moves, and `new` is a sum yet to be taken.
        bound: what no move exceeds, where that is known.
        owned: whether nothing else reads the memory of `held`.
        spare: whether, besides, nobody reads this after the operation that runs now, so that it may write there.
    """

    __slots__ = ("_new", "base", "bound", "full", "held", "is_moves", "owned", "region", "spare")

    def __init__(
        self, base: Tensor, new: Tensor | None, region: Sequence[Span | None], moved: Tensor | None = None
    ) -> None:
        self.base = base
        self._new = new
        self.is_moves = moved is not None
        self.held: Tensor = moved if moved is not None else new  # type: ignore[assignment]
        self.bound: float | None = None
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
        return self.held.shape[0]

    @property
    def new(self) -> Tensor:
        """Shape (K, *extents): the values inside the region."""
        if self._new is None:
            self._new = pick(self.base, self.region) + self.held
        return self._new

    def delta(self) -> Tensor:
        """Shape (K, *extents): how far the entries in the region moved."""
        return self.held if self.is_moves else self.held - pick(self.base, self.region)

    def like(self, base: Tensor, held: Tensor, region: Sequence[Span | None]) -> Perturbed:
        """Another tensor, by its moves if this one is, else by its values: what a linear operation makes of it."""
        return Perturbed(base, None, region, held) if self.is_moves else Perturbed(base, held, region)

    def unsqueezed(self, d: int) -> Perturbed:
        """The same with a new dimension of size 1 before dimension d."""
        region = (*self.region[:d], None, *self.region[d:])
        return self.like(self.base.unsqueeze(d), self.held.unsqueeze(d + 1), region)

    def widened(self, dims: Sequence[int] | None = None) -> Perturbed:
        """The same with all indices of these dimensions (default: of every one) in the region."""
        if self.full:
            return self
        dims = range(self.base.ndim) if dims is None else dims
        if all(self.region[d] is None for d in dims):
            return self
        kept = tuple(None if d in dims else span for d, span in enumerate(self.region))
        inner = tuple(span if d in dims else None for d, span in enumerate(self.region))
        if self.is_moves:
            extents = [n if span is None else span.length for n, span in zip(self.base.shape, kept, strict=True)]
            whole = self.held.new_zeros((self.count, *extents))
        else:
            around = pick(self.base, kept)
            whole = around.expand(self.count, *around.shape[1:]).clone(memory_format=torch.contiguous_format)
        return self.like(self.base, place(whole, inner, self.held), kept)


def pick(base: Tensor, region: Region) -> Tensor:
    """Entries of a tensor in a region: shape (K, *extents), or (1, *extents) where that is the same for all."""
    dims = [d for d, span in enumerate(region) if span is not None]
    if not dims:
        return base.unsqueeze(0)
    if all(_only(region, d) is not None for d in dims):
        for d in dims:
            base = base.narrow(d, _only(region, d) or 0, _length(region, d))
        return base.unsqueeze(0)
    rest = [d for d in range(base.ndim) if d not in dims]
    found = base.permute(*dims, *rest)[tuple(_indices(region, dims))]
    return found.permute(0, *_inverse([*dims, *rest])).contiguous()


def place(whole: Tensor, region: Region, new: Tensor, accumulate: bool = False) -> Tensor:
    """Write (or add) new values into a region of a tensor of shape (K, *sizes), in place."""
    dims = [d for d, span in enumerate(region) if span is not None]
    if all(_only(region, d) is not None for d in dims):
        target = whole
        for d in dims:
            target = target.narrow(d + 1, _only(region, d) or 0, _length(region, d))
        _ = target.add_(new) if accumulate else target.copy_(new)
        return whole
    rest = [d for d in range(len(region)) if d not in dims]
    lead = torch.arange(whole.shape[0], device="cpu").reshape(-1, *(1 for _ in dims))
    view = whole.permute(0, *(d + 1 for d in dims), *(d + 1 for d in rest))
    values = new.permute(0, *(d + 1 for d in dims), *(d + 1 for d in rest))
    at = (lead, *_indices(region, dims))
    view[at] = view[at].add_(values) if accumulate else values
    return whole


def pick_each(whole: Tensor, region: Region) -> Tensor:
    """Entries in a region of a tensor of shape (K, *sizes), each perturbation from its own part."""
    dims = [d for d, span in enumerate(region) if span is not None]
    if all(_only(region, d) is not None for d in dims):
        for d in dims:
            whole = whole.narrow(d + 1, _only(region, d) or 0, _length(region, d))
        return whole
    rest = [d for d in range(len(region)) if d not in dims]
    lead = torch.arange(whole.shape[0], device="cpu").reshape(-1, *(1 for _ in dims))
    found = whole.permute(0, *(d + 1 for d in dims), *(d + 1 for d in rest))[(lead, *_indices(region, dims))]
    return found.permute(0, *_inverse([*dims, *rest]))


def _indices(region: Region, dims: list[int]) -> list[Tensor]:
    """Index tensors that broadcast to (K, length of dims[0], length of dims[1], …)."""
    indices = []
    for position, d in enumerate(dims):
        span = region[d]
        if span is not None:
            shape = [1] * len(dims)
            shape[position] = span.length
            indices.append(span.index.reshape(-1, *shape))
    return indices


def _only(region: Region, d: int) -> int | None:
    span = region[d]
    return None if span is None else span.only


def _length(region: Region, d: int) -> int:
    span = region[d]
    return 0 if span is None else span.length


def _inverse(order: list[int]) -> list[int]:
    """Where dimension d of the original sits after a leading batch dimension."""
    back = [0] * len(order)
    for position, d in enumerate(order):
        back[d] = position + 1
    return back
