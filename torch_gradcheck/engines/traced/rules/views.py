"""Rules for operations that only rearrange entries: views, joins, splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.engines.traced.recording.aliasing import read_view, scatter_view
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Span
from torch_gradcheck.engines.traced.rules.pointwise import common_region, restricted
from torch_gradcheck.engines.traced.rules.registry import OperationCall, Results, perturbed_only, rule


def _at(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


@rule("t.default", "transpose.int", "permute.default")
def permute(call: OperationCall) -> Results:
    """Dimensions in another order."""
    x: Perturbed = call.args[0]
    ndim = x.base.ndim
    order = list(range(ndim))
    if len(call.args) == 3:
        i, j = _at(call.args[1], ndim), _at(call.args[2], ndim)
        order[i], order[j] = j, i
    elif len(call.args) == 2:
        order = [_at(d, ndim) for d in call.args[1]]
    else:
        order.reverse()
    return [x.like(call.base, x.stored.permute(0, *(d + 1 for d in order)), [x.region[d] for d in order])]


@rule("unsqueeze.default")
def unsqueeze(call: OperationCall) -> Results:
    """A new dimension of size 1."""
    x: Perturbed = call.args[0]
    return [x.unsqueezed(_at(call.args[1], x.base.ndim + 1))]


@rule("squeeze.default", "squeeze.dim", "squeeze.dims")
def squeeze(call: OperationCall) -> Results:
    """Dimensions of size 1 removed."""
    x: Perturbed = call.args[0]
    given = call.arg(1, "dim", tuple(range(x.base.ndim)))
    dims = {_at(d, x.base.ndim) for d in ((given,) if isinstance(given, int) else given)}
    kept = [d for d in range(x.base.ndim) if d not in dims or x.base.shape[d] != 1]
    stored = x.stored.reshape(x.count, *(x.stored.shape[d + 1] for d in kept))
    return [x.like(call.base, stored, [x.region[d] for d in kept])]


@rule("expand.default")
def expand(call: OperationCall) -> Results:
    """Dimensions of size 1 repeated, without copying."""
    x: Perturbed = call.args[0]
    ndim, lacking = call.base.ndim, call.base.ndim - x.base.ndim
    region = (*(None,) * lacking, *x.region)
    sizes = [span.length if span is not None else n for span, n in zip(region, call.base.shape, strict=True)]
    stored = x.stored.reshape(x.count, *(1,) * lacking, *x.stored.shape[1:]) if lacking else x.stored
    return [x.like(call.base, stored.expand(x.count, *sizes), region)] if ndim else [x]


def sliced(x: Perturbed, d: int, start: int, length: int, base: Tensor) -> Perturbed | None:
    """Indices start … start + length − 1 of dimension d; None where no perturbation changes these."""
    span = x.region[d]
    if span is None:
        return x.like(base, x.stored.narrow(d + 1, start, length), x.region)
    first, last = span.starts, span.starts + span.length
    if bool(((last <= start) | (first >= start + length)).all()):
        return None
    if bool(((first >= start) & (last <= start + length)).all()):
        return x.like(base, x.stored, (*x.region[:d], span.shifted(-start), *x.region[d + 1 :]))
    return sliced(x.widened([d]), d, start, length, base)


@rule("slice.Tensor")
def slice_(call: OperationCall) -> Results:
    """x[..., start:end:step, ...]."""
    x: Perturbed = call.args[0]
    d = _at(call.arg(1, "dim", 0), x.base.ndim)
    start, stop, step = slice(call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step", 1)).indices(x.base.shape[d])
    if step == 1:
        return [sliced(x, d, start, max(stop - start, 0), call.base)]
    x = x.widened([d])
    picked = x.stored[(slice(None),) * (d + 1) + (slice(start, stop, step),)]
    return [x.like(call.base, picked, x.region)]


@rule("select.int")
def select(call: OperationCall) -> Results:
    """x[..., index, ...]."""
    x: Perturbed = call.args[0]
    d = _at(call.args[1], x.base.ndim)
    index = call.args[2] % x.base.shape[d]
    return [selected(x, d, index, call.base)]


def selected(x: Perturbed, d: int, index: int, base: Tensor) -> Perturbed | None:
    """Index `index` of dimension d, without that dimension; None where no perturbation changes it."""
    part = sliced(x, d, index, 1, x.base.narrow(d, index, 1))
    if part is None:
        return None
    return part.like(base, part.stored.squeeze(d + 1), (*part.region[:d], *part.region[d + 1 :]))


@rule("split.Tensor", "split_with_sizes.default", "unsafe_split.Tensor", "unsafe_split_with_sizes.default")
def split(call: OperationCall) -> Results:
    """Consecutive slices."""
    x: Perturbed = call.args[0]
    d = _at(call.arg(2, "dim", 0), x.base.ndim)
    starts = np.cumsum([0, *(base.shape[d] for base in call.bases)])
    return [sliced(x, d, int(start), base.shape[d], base) for start, base in zip(starts, call.bases, strict=False)]


@rule("unbind.int")
def unbind(call: OperationCall) -> Results:
    """x[0], x[1] and so on."""
    x: Perturbed = call.args[0]
    d = _at(call.arg(1, "dim", 0), x.base.ndim)
    return [selected(x, d, index, base) for index, base in enumerate(call.bases)]


@rule("cat.default")
def cat(call: OperationCall) -> Results:
    """Tensors end to end."""
    d = _at(call.arg(1, "dim", 0), call.base.ndim)
    return [_joined(call.args[0], d, call.base, call.count)]


@rule("stack.default")
def stack(call: OperationCall) -> Results:
    """Tensors side by side."""
    d = _at(call.arg(1, "dim", 0), call.base.ndim)
    parts = [x.unsqueezed(d) if isinstance(x, Perturbed) else x.unsqueeze(d) for x in call.args[0]]
    return [_joined(parts, d, call.base, call.count)]


def _joined(parts: Sequence[Tensor | Perturbed], d: int, base: Tensor, count: int) -> Perturbed:
    parts = [x for x in parts if isinstance(x, Perturbed) or x.ndim == base.ndim]  # cat skips empty vectors
    perturbed = [x for x in parts if isinstance(x, Perturbed)]
    if len(perturbed) == 1:
        return _one_joined(parts, perturbed[0], d, base)
    shape = list(base.shape)
    shape[d] = -1  # sizes differ here, so the region takes all of this dimension
    region = common_region(perturbed, torch.Size(shape))
    pieces = [restricted(x, region, base.ndim) for x in parts]
    pieces = [x if x.ndim == base.ndim + 1 else x.unsqueeze(0) for x in pieces]
    return Perturbed(base, torch.cat([x.expand(count, *x.shape[1:]) for x in pieces], d + 1), region)


def _one_joined(parts: Sequence[Tensor | Perturbed], x: Perturbed, d: int, base: Tensor) -> Perturbed:
    """Several tensors of which one is perturbed: the result is perturbed in that part."""
    before = 0
    for part in parts:
        if part is x:
            break
        before += part.base.shape[d] if isinstance(part, Perturbed) else part.shape[d]
    own = x.region[d]
    span = own.shifted(before) if own is not None else Span(np.full(x.count, before), x.base.shape[d])
    return x.like(base, x.stored, (*x.region[:d], span, *x.region[d + 1 :]))


@rule("view.default", "reshape.default", "_unsafe_view.default", "_reshape_alias.default")
def reshape(call: OperationCall) -> Results:
    """Dimensions merged and split: a box stays a box where its entries are consecutive."""
    x: Perturbed = call.args[0]
    if x.full:
        return [x.like(call.base, x.stored.reshape(x.count, *call.base.shape), (None,) * call.base.ndim)]
    groups = matching_groups(x.base.shape, call.base.shape)
    if groups is None:
        groups = [(range(x.base.ndim), range(call.base.ndim))]
    x = x.widened([d for olds, news in groups for d in olds if not _stays_box(x, olds, news, call.base.shape)])
    region: list[Span | None] = []
    for olds, news in groups:
        region += _reshaped_spans(x, olds, news, call.base.shape)
    sizes = [span.length if span is not None else n for span, n in zip(region, call.base.shape, strict=True)]
    return [x.like(call.base, x.stored.reshape(x.count, *sizes), region)]


def matching_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]] | None:
    """Runs of dimensions that hold the same entries before and after; None for empty tensors."""
    if 0 in old or 0 in new:
        return None
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        left, i = (old[i], i + 1) if i < len(old) else (1, i)
        right, j = (new[j], j + 1) if j < len(new) else (1, j)
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        groups.append((range(first_i, i), range(first_j, j)))
    return groups


def _stays_box(x: Perturbed, olds: range, news: range, shape: torch.Size) -> bool:
    """Whether the box over these dimensions is one over the new dimensions too."""
    if all(x.region[d] is None for d in olds):
        return True
    flat = _flattened(x, olds)
    return flat is not None and _unflattened(flat, [shape[d] for d in news]) is not None


def _reshaped_spans(x: Perturbed, olds: range, news: range, shape: torch.Size) -> list[Span | None]:
    flat = _flattened(x, olds) if any(x.region[d] is not None for d in olds) else None
    spans = _unflattened(flat, [shape[d] for d in news]) if flat is not None else None
    return spans if spans is not None else [None for _ in news]


def _flattened(x: Perturbed, dims: range) -> Span | None:
    """The box as a run of consecutive flat indices; None where it is none."""
    sizes = [x.base.shape[d] for d in dims]
    starts, length, run_ended = np.zeros(x.count, dtype=np.int64), 1, False
    for d, size in zip(dims, sizes, strict=True):
        span = x.region[d]
        extent = size if span is None else span.length
        if run_ended and span is not None:
            return None  # only whole dimensions may follow the first one with several indices
        starts = starts * size + (0 if span is None else span.starts)
        length *= extent
        run_ended = run_ended or extent > 1
    return Span(starts, length)


def _unflattened(flat: Span, sizes: list[int]) -> list[Span | None] | None:
    """A run of flat indices as a box over dimensions of these sizes; None where some perturbation's is no box."""
    spans: list[Span | None] = []
    starts, length = flat.starts, flat.length
    inner = int(np.prod(sizes, dtype=np.int64))
    for size in sizes:
        inner //= size
        extent = max(length // inner, 1)
        if length > inner and length % inner:
            return None
        first = starts // inner
        starts = starts - first * inner
        if length <= inner:
            if bool((starts + length > inner).any()):
                return None
        elif bool(starts.any()):
            return None
        spans.append(None if size == 1 else Span(first, extent))
        length = min(length, inner)
    return spans


@rule("flip.default")
def flip(call: OperationCall) -> Results:
    """Some dimensions backwards."""
    x: Perturbed = call.args[0]
    dims = [_at(d, x.base.ndim) for d in call.args[1]]
    x = x.widened(dims)
    return [x.like(call.base, x.stored.flip([d + 1 for d in dims]), x.region)]


@rule("constant_pad_nd.default")
def pad(call: OperationCall) -> Results:
    """A border of constants; dimensions are counted from the last."""
    x: Perturbed = call.args[0]
    padded = range(x.base.ndim - len(call.args[1]) // 2, x.base.ndim)
    x = x.widened(list(padded))
    return [Perturbed(call.base, call.func(x.values, *call.args[1:]), x.region)]


@rule("view_as_real.default")
def view_as_real(call: OperationCall) -> Results:
    """Complex entries as pairs."""
    x: Perturbed = call.args[0]
    return [x.like(call.base, torch.view_as_real(x.stored.resolve_conj()), (*x.region, None))]


@rule("view_as_complex.default")
def view_as_complex(call: OperationCall) -> Results:
    """Pairs as complex entries."""
    x: Perturbed = call.args[0]
    x = x.widened([x.base.ndim - 1])
    return [x.like(call.base, torch.view_as_complex(x.stored.contiguous()), x.region[:-1])]


@rule(read_view)
def view_read(call: OperationCall) -> Results:
    """Known memory read through another view."""
    perturbed_only(call, 0)
    x: Perturbed = call.args[0].widened()
    values = read_view(x.values, call.args[1], call.args[2], lead=1)
    return [Perturbed(call.base, values, (None,) * call.base.ndim)]


@rule(scatter_view)
def view_written(call: OperationCall) -> Results:
    """Known memory after a write through a view."""
    x, seen, entries, written = call.args
    whole, part = _dense(x, call.count), _dense(entries, call.count)
    return [Perturbed(call.base, scatter_view(whole, seen, part, written, lead=1), (None,) * call.base.ndim)]


def _dense(x: Tensor | Perturbed, count: int) -> Tensor:
    return x.widened().values if isinstance(x, Perturbed) else x.unsqueeze(0).expand(count, *x.shape)
