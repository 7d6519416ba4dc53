"""Rules for convolutions and pooling.

A convolution is linear in each argument. A step h of coordinate (o, i, k) of the kernel adds h times input channel i,
as tap k sees it, to output channel o. What a tap sees is a strided view of the padded input, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Span
from torch_gradcheck.engines.traced.rules.products import plus_difference
from torch_gradcheck.engines.traced.rules.registry import (
    NoRuleError,
    OperationCall,
    Results,
    Rule,
    perturbed_only,
    rule,
)
from torch_gradcheck.torch_internals.operations import existing, flatten


class Geometry:
    """Stride, padding, dilation and groups of a convolution, the first three with one entry a spatial dimension."""

    def __init__(self, call: OperationCall) -> None:
        stride, padding, dilation, self.transposed, _, self.groups = call.args[3:9]
        spatial = call.base.ndim - 2
        self.stride = _spread(stride, spatial)
        self.padding = _spread(padding, spatial)
        self.dilation = _spread(dilation, spatial)


def _spread(given: Sequence[int], count: int) -> list[int]:
    return list(given) * count if len(given) == 1 else list(given)


@rule("convolution.default")
def convolution(call: OperationCall) -> Results:
    """A convolution with any stride, padding, dilation and groups, transposed or not."""
    x, weight, bias = call.args[:3]
    geometry = Geometry(call)
    result = None
    if isinstance(x, Perturbed) and isinstance(weight, Perturbed):
        raise NoRuleError
    if isinstance(x, Perturbed):
        result = _input_perturbed(call, x, geometry)
    elif isinstance(weight, Perturbed):
        result = _weight_perturbed(call, x, weight, geometry)
    if isinstance(bias, Perturbed):
        shaped = _per_channel(bias, call.base.ndim - 2)
        result = plus_difference(result, shaped, call.base)
    return [result]


def _per_channel(x: Perturbed, spatial: int) -> Perturbed:
    """A vector with one entry a channel, in the shape that adds to (batch, channels, …)."""
    ones = (1,) * spatial
    base, values = x.base.reshape(-1, *ones), x.values.reshape(*x.values.shape[:2], *ones)
    return Perturbed(base, values, (*x.region, *(None,) * spatial))


def _input_perturbed(call: OperationCall, x: Perturbed, geometry: Geometry) -> Perturbed:
    """All perturbations side by side along the batch; the channels that they change alone, where these are few."""
    weight, bias = call.args[1], call.args[2]
    channel = x.region[1]
    x = x.widened([d for d in range(x.base.ndim) if d > 1 or (d == 1 and not _is_worth_alone(channel, x, geometry))])
    channel = x.region[1]
    bias = bias.base if isinstance(bias, Perturbed) else bias
    region = (x.region[0], *(None,) * (call.base.ndim - 1))
    if channel is None or channel.common_start is None:
        folded = call.func(x.stored.flatten(0, 1), weight, None if x.holds_deltas else bias, *call.args[3:])
        return x.like(call.base, folded.unflatten(0, (x.count, -1)), region)
    part = weight.narrow(0 if geometry.transposed else 1, channel.common_start, channel.length)
    deltas = call.func(x.deltas.flatten(0, 1), part, None, *call.args[3:]).unflatten(0, (x.count, -1))
    return Perturbed(call.base, None, region, deltas)


def _is_worth_alone(channel: Span | None, x: Perturbed, geometry: Geometry) -> bool:
    """Whether the perturbations share a block of input channels that is worth convolving alone."""
    if channel is None or geometry.groups != 1 or channel.common_start is None:
        return False
    return 2 * channel.length <= x.base.shape[1]


def _weight_perturbed(call: OperationCall, x: Tensor, weight: Perturbed, geometry: Geometry) -> Perturbed:
    """The kernel perturbed in one coordinate each, or in whole filters."""
    extents = weight.values.shape[1:]
    if extents.numel() == 1:
        return _coordinate_perturbed(call, x, weight, geometry)
    if geometry.transposed or geometry.groups != 1:
        raise NoRuleError
    filters = weight.widened(range(1, weight.base.ndim))
    deltas = call.func(x, filters.deltas.flatten(0, 1), None, *call.args[3:])
    deltas = deltas.unflatten(1, (weight.count, -1)).transpose(0, 1)
    region = (None, filters.region[0], *(None,) * (call.base.ndim - 2))
    return Perturbed(call.base, None, region, deltas)


def _coordinate_perturbed(call: OperationCall, x: Tensor, weight: Perturbed, geometry: Geometry) -> Perturbed:
    """One coordinate of the kernel for each perturbation."""
    zeros = np.zeros(weight.count, dtype=np.int64)
    first, second, *taps = (zeros if span is None else span.starts for span in weight.region)
    inner, outer = weight.base.shape[1], call.base.shape[1] // geometry.groups
    if geometry.transposed:
        into, out = first, first // (x.shape[1] // geometry.groups) * outer + second
        taps = [n - 1 - tap for n, tap in zip(weight.base.shape[2:], taps, strict=True)]
    else:
        into, out = first // outer * inner + second, first
    seen = seen_by_taps(x, weight.base.shape[2:], call.base.shape[2:], geometry)
    picked = seen[tuple(torch.from_numpy(index) for index in (into, *taps))]
    step = weight.deltas.reshape(-1, *(1,) * call.base.ndim)
    region = (None, Span(out, 1), *(None,) * (call.base.ndim - 2))
    return Perturbed(call.base, None, region, picked.unsqueeze(2) * step)


def seen_by_taps(x: Tensor, taps: Sequence[int], out: Sequence[int], geometry: Geometry) -> Tensor:
    """The input that each tap multiplies, a view of shape (channels, *taps, batch, *output positions).

    A transposed convolution is an ordinary one with the taps in reverse order, over the input with stride − 1 zeros
    between its entries.
    """
    steps, pads = geometry.stride, []
    if geometry.transposed:
        x, steps = _spread_out(x, geometry.stride), [1] * len(taps)
    for d in reversed(range(len(taps))):
        reach = (taps[d] - 1) * geometry.dilation[d]
        left = reach - geometry.padding[d] if geometry.transposed else geometry.padding[d]
        pads += [left, (out[d] - 1) * steps[d] + reach + 1 - left - x.shape[d + 2]]
    padded = F.pad(x, pads).contiguous()
    batch, channels, *places = padded.stride()
    sizes = (x.shape[1], *taps, x.shape[0], *out)
    by_tap = (n * s for n, s in zip(geometry.dilation, places, strict=True))
    by_step = (n * s for n, s in zip(steps, places, strict=True))
    return padded.as_strided(sizes, (channels, *by_tap, batch, *by_step))


def _spread_out(x: Tensor, stride: Sequence[int]) -> Tensor:
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sizes))
    places: tuple[Any, ...] = (..., *(slice(None, None, s) for s in stride))
    spread[places] = x
    return spread


def pooling(spatial: int) -> Rule:
    """A rule for pooling and resizing over the last `spatial` dimensions, with any number of dimensions before them."""

    def pool(call: OperationCall) -> Results:
        perturbed_only(call, 0)
        x: Perturbed = call.args[0]
        lead = x.base.ndim - spatial
        x = x.widened(range(lead, x.base.ndim))
        x = x if call.func in _LINEAR else Perturbed(x.base, x.values, x.region)
        folded = x.stored.flatten(0, lead - 1) if lead > 1 else x.stored
        results = flatten(call.func(folded, *call.args[1:], **call.kwargs))
        found: Results = []
        for base, pooled in zip(call.bases, results, strict=True):
            found.append(x.like(base, pooled.reshape(*x.stored.shape[: lead + 1], *pooled.shape[2:]), x.region))
        return found

    return pool


_POOLING = {
    "max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "avg_pool2d": 2, "avg_pool3d": 3,
    "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3, "adaptive_max_pool2d": 2, "upsample_nearest2d": 2,
    "upsample_bilinear2d": 2, "upsample_nearest1d": 1, "reflection_pad2d": 2, "reflection_pad1d": 1,
    "replication_pad2d": 2, "replication_pad1d": 1,
}  # fmt: skip
"""Operation → over how many dimensions it pools, resizes or pads."""

_LINEAR = existing(*(f"{name}.default" for name in _POOLING if "max" not in name))

for _name, _spatial in _POOLING.items():
    rule(f"{_name}.default")(pooling(_spatial))
