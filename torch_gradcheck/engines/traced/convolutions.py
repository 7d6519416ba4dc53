"""Rules for convolutions and pooling.

A convolution is linear in each argument. One coordinate (o, i, k) of the kernel moves output channel o by h times
input channel i as tap k sees it: a strided window on the padded input, read in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from torch_gradcheck.engines.traced.products import plus_difference
from torch_gradcheck.engines.traced.rules import RULES, Call, NoRuleError, Results, rule
from torch_gradcheck.engines.traced.tape import flatten
from torch_gradcheck.engines.traced.touched import Span, Touched, pick

aten = torch.ops.aten


class Geometry:
    """What a convolution does with positions; one entry a spatial dimension."""

    def __init__(self, call: Call) -> None:
        stride, padding, dilation, self.transposed, _, self.groups = call.args[3:9]
        spatial = call.base.ndim - 2
        self.stride = _spread(stride, spatial)
        self.padding = _spread(padding, spatial)
        self.dilation = _spread(dilation, spatial)


def _spread(given: Sequence[int], count: int) -> list[int]:
    return list(given) * count if len(given) == 1 else list(given)


@rule(aten.convolution.default)
def convolution(call: Call) -> Results:
    """A convolution with any stride, padding, dilation and groups, transposed or not."""
    x, weight, bias = call.args[:3]
    geometry = Geometry(call)
    result = None
    if isinstance(x, Touched) and isinstance(weight, Touched):
        raise NoRuleError
    if isinstance(x, Touched):
        result = _input_touched(call, x, geometry)
    elif isinstance(weight, Touched):
        result = _weight_touched(call, x, weight, geometry)
    if isinstance(bias, Touched):
        shaped = _per_channel(bias, call.base.ndim - 2)
        result = plus_difference(result, shaped, call.base)
    return [result]


def _per_channel(x: Touched, spatial: int) -> Touched:
    """A vector with an entry a channel, shaped to be added to (batch, channels, …)."""
    ones = (1,) * spatial
    base, new = x.base.reshape(-1, *ones), x.new.reshape(*x.new.shape[:2], *ones)
    return Touched(base, new, (*x.region, *(None,) * spatial))


def _input_touched(call: Call, x: Touched, geometry: Geometry) -> Touched:
    """All perturbations side by side along the batch, with the changed channel alone where that is one channel."""
    weight, bias = call.args[1], call.args[2]
    channel = x.region[1]
    x = x.widened([d for d in range(x.base.ndim) if d > 1 or (d == 1 and not _lonely(channel, x, geometry))])
    channel = x.region[1]
    bias = bias.base if isinstance(bias, Touched) else bias
    region = (x.region[0], *(None,) * (call.base.ndim - 1))
    if channel is None or channel.only is None:
        folded = call.func(x.new.flatten(0, 1), weight, bias, *call.args[3:])
        return Touched(call.base, folded.unflatten(0, (x.count, -1)), region)
    part = weight.narrow(0 if geometry.transposed else 1, channel.only, channel.length)
    moved = call.func(x.delta().flatten(0, 1), part, None, *call.args[3:]).unflatten(0, (x.count, -1))
    return Touched(call.base, moved.add_(pick(call.base, region)), region)


def _lonely(channel: Span | None, x: Touched, geometry: Geometry) -> bool:
    """Whether the perturbations share a block of input channels that is worth convolving alone."""
    if channel is None or geometry.groups != 1 or channel.only is None:
        return False
    return 2 * channel.length <= x.base.shape[1]


def _weight_touched(call: Call, x: Tensor, weight: Touched, geometry: Geometry) -> Touched:
    """The kernel touched in one coordinate each, or in whole filters."""
    if all(span.length == 1 if span is not None else n == 1
           for span, n in zip(weight.region, weight.base.shape, strict=True)):
        return _coordinate_touched(call, x, weight, geometry)
    if geometry.transposed or geometry.groups != 1:
        raise NoRuleError
    filters = weight.widened(range(1, weight.base.ndim))
    out = filters.region[0]
    moved = call.func(x, filters.delta().flatten(0, 1), None, *call.args[3:])
    moved = moved.unflatten(1, (weight.count, -1)).transpose(0, 1)
    region = (None, out, *(None,) * (call.base.ndim - 2))
    return Touched(call.base, moved + pick(call.base, region), region)


def _coordinate_touched(call: Call, x: Tensor, weight: Touched, geometry: Geometry) -> Touched:
    """One coordinate of the kernel for each perturbation."""
    first, second, *taps = (
        span.starts if span is not None else np.zeros(weight.count, dtype=np.int64) for span in weight.region
    )
    inner, outer = weight.base.shape[1], call.base.shape[1] // geometry.groups
    if geometry.transposed:
        into, out = first, first // (x.shape[1] // geometry.groups) * outer + second
    else:
        into, out = first // outer * inner + second, first
    seen = _seen_by_taps(x, call.base, weight.base, geometry)
    picked = seen[tuple(torch.from_numpy(index) for index in (into, *taps))]
    step = weight.delta().reshape(-1, *(1,) * call.base.ndim)
    region = (None, Span(out, 1), *(None,) * (call.base.ndim - 2))
    return Touched(call.base, torch.addcmul(pick(call.base, region), picked.unsqueeze(2), step), region)


def _seen_by_taps(x: Tensor, out: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A view of shape (channels, *taps, batch, *output positions): the input each tap multiplies there.

    A transposed convolution is a plain one over the input with stride − 1 zeros between its entries.
    """
    spatial = out.ndim - 2
    sizes = weight.shape[2:]
    lengths, firsts, steps, moves = [], [], [], []
    for d in range(spatial):
        reach = (sizes[d] - 1) * geometry.dilation[d]
        if geometry.transposed:
            before, first, step, move = max(reach - geometry.padding[d], 0), None, 1, -geometry.dilation[d]
            first = reach + before - (reach - geometry.padding[d])
        else:
            before, first, step, move = geometry.padding[d], 0, geometry.stride[d], geometry.dilation[d]
        last = first + max(0, move) * (sizes[d] - 1) + (out.shape[d + 2] - 1) * step
        lengths.append((before, last + 1))
        firsts.append(first)
        steps.append(step)
        moves.append(move)
    spread = geometry.stride if geometry.transposed else [1] * spatial
    padded = _padded(x, lengths, spread)
    strides = padded.stride()
    return padded.as_strided(
        (x.shape[1], *sizes, x.shape[0], *out.shape[2:]),
        (strides[1], *(0 for _ in sizes), strides[0], *(s * n for s, n in zip(strides[2:], steps, strict=True))),
        sum(first * s for first, s in zip(firsts, strides[2:], strict=True)),
    ) if not any(moves) else _strided(padded, x, out, sizes, firsts, steps, moves)


def _strided(
    padded: Tensor,
    x: Tensor,
    out: Tensor,
    sizes: Sequence[int],
    firsts: list[int],
    steps: list[int],
    moves: list[int],
) -> Tensor:
    return padded
