"""Rules for layer, group, batch and weight normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.pointwise import common_region, restricted
from torch_gradcheck.engines.traced.products import plus_difference
from torch_gradcheck.engines.traced.rules import Call, NoRuleError, Results, all_touched, rule
from torch_gradcheck.engines.traced.tape import flatten
from torch_gradcheck.engines.traced.touched import Touched, pick

aten = torch.ops.aten


def _affine(call: Call, normalized: Tensor, weight: Touched | None, bias: Touched | None) -> Touched | None:
    """weight · normalized + bias with the two touched, each in the shape that is broadcast over the result."""
    result = None
    if weight is not None:
        region = (*(None,) * (call.base.ndim - weight.base.ndim), *weight.region)
        step = weight.delta()
        step = step.reshape(step.shape[0], *(1,) * (call.base.ndim + 1 - step.ndim), *step.shape[1:])
        result = Touched(call.base, torch.addcmul(pick(call.base, region), pick(normalized, region), step), region)
    return result if bias is None else plus_difference(result, bias, call.base)


def _shaped(x: Touched | Tensor | None, trailing: int) -> Touched | None:
    """A touched vector with ones after it."""
    if not isinstance(x, Touched):
        return None
    ones = (1,) * trailing
    return Touched(x.base.reshape(-1, *ones), x.new.reshape(*x.new.shape[:2], *ones), (*x.region, *(None,) * trailing))


def _others_at_base(call: Call, results: list[Touched | None]) -> Results:
    """The statistics that a normalization returns beside its result do not move with weight and bias."""
    return [*results, *(None for _ in call.bases[1:])]


@rule(aten.native_layer_norm.default)
def layer_norm(call: Call) -> Results:
    """Normalization over the last dimensions."""
    x, shape, weight, bias, eps = call.args
    inner = len(shape)
    if isinstance(x, Touched):
        if isinstance(weight, Touched) or isinstance(bias, Touched):
            raise NoRuleError
        x = x.widened(range(x.base.ndim - inner, x.base.ndim))
        results = flatten(call.func(x.new, shape, weight, bias, eps))
        regions = (x.region, x.region, x.region)
        return [Touched(*each) for each in zip(call.bases, results, regions, strict=True)]
    _, mean, rstd = call.bases
    normalized = (x - mean) * rstd
    touched = [x if isinstance(x, Touched) else None for x in (weight, bias)]
    return _others_at_base(call, [_affine(call, normalized, *touched)])


@rule(aten.native_group_norm.default)
def group_norm(call: Call) -> Results:
    """Normalization over groups of channels."""
    x, weight, bias, N, C, size, groups, eps = call.args
    if isinstance(x, Touched):
        if isinstance(weight, Touched) or isinstance(bias, Touched):
            raise NoRuleError
        x = x.widened()
        results = flatten(call.func(x.new.flatten(0, 1).contiguous(), weight, bias, x.count * N, C, size, groups, eps))
        results = [new.unflatten(0, (x.count, N)) for new in results]
        return [Touched(base, new, (None,) * base.ndim) for base, new in zip(call.bases, results, strict=True)]
    _, mean, rstd = call.bases
    grouped = x.reshape(N, groups, -1)
    normalized = ((grouped - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)).reshape(x.shape)
    trailing = x.ndim - 2
    return _others_at_base(call, [_affine(call, normalized, _shaped(weight, trailing), _shaped(bias, trailing))])


@rule(aten._native_batch_norm_legit.no_stats)
def batch_norm_training(call: Call) -> Results:
    """Normalization by the statistics of the batch; a channel stays a channel."""
    x, weight, bias, _, _, eps = call.args
    return _batch_norm(call, x, weight, bias, None, eps)


@rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm_evaluation(call: Call) -> Results:
    """Normalization by running statistics."""
    x, weight, bias, mean, variance, _, eps = call.args
    if isinstance(mean, Touched) or isinstance(variance, Touched):
        raise NoRuleError
    return _batch_norm(call, x, weight, bias, (mean, variance), eps)


def _batch_norm(
    call: Call,
    x: Tensor | Touched,
    weight: Tensor | Touched | None,
    bias: Tensor | Touched | None,
    statistics: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Results:
    trailing = call.base.ndim - 2
    if not isinstance(x, Touched):
        normalized = _normalized(x.unsqueeze(0), statistics, eps, trailing)[0]
        return _others_at_base(call, [_affine(call, normalized, _shaped(weight, trailing), _shaped(bias, trailing))])
    if isinstance(weight, Touched) or isinstance(bias, Touched):
        raise NoRuleError
    if statistics is None:
        x = x.widened([d for d in range(x.base.ndim) if d != 1])
    region = (None, x.region[1], *(None,) * trailing)
    picked = None
    if statistics is not None:
        picked = tuple(_picked(statistic, region, trailing) for statistic in statistics)
    new = _normalized(x.new, picked, eps, trailing)  # type: ignore[arg-type]
    for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            new = combine(new, _picked(parameter, region, trailing))
    return _others_at_base(call, [Touched(call.base, new, x.region)])


def _picked(statistic: Tensor, region: Sequence[object], trailing: int) -> Tensor:
    """Entries of a vector over channels for the channels touched, shape (K or 1, 1, channels, 1, …)."""
    found = pick(statistic, (region[1],))  # type: ignore[arg-type]
    return found.reshape(found.shape[0], 1, -1, *(1,) * trailing)


def _normalized(x: Tensor, statistics: tuple[Tensor, Tensor] | None, eps: float, trailing: int) -> Tensor:
    """(x − mean) / √(variance + eps) for x of shape (K, batch, channels, …)."""
    if statistics is None:
        dims = (1, *range(3, x.ndim))
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    else:
        mean, variance = (s.reshape(1, 1, -1, *(1,) * trailing) if s.ndim == 1 else s for s in statistics)
    return (x - mean).mul_(torch.rsqrt(variance + eps))


@rule(aten._weight_norm_interface.default)
def weight_norm(call: Call) -> Results:
    """g · v / ‖v‖ by rows: one coordinate of v touches its row."""
    v, g = call.args[:2]
    if call.arg(2, "dim", 0) != 0 or call.base.ndim < 2:
        raise NoRuleError
    if isinstance(v, Touched):
        v = v.widened(range(1, call.base.ndim))
    region = common_region(all_touched([v, g]), call.base.shape)
    v, g = (restricted(x, region, call.base.ndim) for x in (v, g))
    norm = torch.linalg.vector_norm(v, dim=tuple(range(1 - call.base.ndim, 0)), keepdim=True)
    new = v * (g / norm)
    norms = norm.expand(new.shape[0], *new.shape[1:2], *norm.shape[-call.base.ndim + 1 :])
    return [Touched(call.base, new, region), Touched(call.bases[1], norms, region)]
