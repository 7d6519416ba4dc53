"""Rules for layer, group, batch and weight normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, pick
from torch_gradcheck.engines.traced.rules.pointwise import common_region, restricted
from torch_gradcheck.engines.traced.rules.products import plus_difference
from torch_gradcheck.engines.traced.rules.registry import NoRuleError, OperationCall, Results, all_perturbed, rule
from torch_gradcheck.torch_internals.operations import flatten


def _affine(
    call: OperationCall, normalized: Tensor, weight: Perturbed | None, bias: Perturbed | None
) -> Perturbed | None:
    """weight · normalized + bias with one or both perturbed, each in the shape that is broadcast over the result."""
    result = None
    if weight is not None:
        region = (*(None,) * (call.base.ndim - weight.base.ndim), *weight.region)
        step = weight.deltas
        step = step.reshape(step.shape[0], *(1,) * (call.base.ndim + 1 - step.ndim), *step.shape[1:])
        result = Perturbed(call.base, torch.addcmul(pick(call.base, region), pick(normalized, region), step), region)
    return result if bias is None else plus_difference(result, bias, call.base)


def _shaped(x: Perturbed | Tensor | None, trailing: int) -> Perturbed | None:
    """A perturbed vector with trailing dimensions of size 1; None for any other argument."""
    if not isinstance(x, Perturbed):
        return None
    ones = (1,) * trailing
    return Perturbed(
        x.base.reshape(-1, *ones), x.values.reshape(*x.values.shape[:2], *ones), (*x.region, *(None,) * trailing)
    )


def _others_at_base(call: OperationCall, results: list[Perturbed | None]) -> Results:
    """The results of a normalization, with its statistics, which depend on neither weight nor bias, as at θ."""
    return [*results, *(None for _ in call.bases[1:])]


@rule("native_layer_norm.default")
def layer_norm(call: OperationCall) -> Results:
    """Normalization over the last dimensions."""
    x, shape, weight, bias, eps = call.args
    inner = len(shape)
    if isinstance(x, Perturbed):
        if isinstance(weight, Perturbed) or isinstance(bias, Perturbed):
            raise NoRuleError
        x = x.widened(range(x.base.ndim - inner, x.base.ndim))
        results = flatten(call.func(x.values, shape, weight, bias, eps))
        regions = (x.region, x.region, x.region)
        return [Perturbed(*each) for each in zip(call.bases, results, regions, strict=True)]
    _, mean, rstd = call.bases
    normalized = (x - mean) * rstd
    perturbed = [x if isinstance(x, Perturbed) else None for x in (weight, bias)]
    return _others_at_base(call, [_affine(call, normalized, *perturbed)])


@rule("native_group_norm.default")
def group_norm(call: OperationCall) -> Results:
    """Normalization over groups of channels."""
    x, weight, bias, N, C, size, groups, eps = call.args
    if isinstance(x, Perturbed):
        if isinstance(weight, Perturbed) or isinstance(bias, Perturbed):
            raise NoRuleError
        x = x.widened()
        results = flatten(
            call.func(x.values.flatten(0, 1).contiguous(), weight, bias, x.count * N, C, size, groups, eps)
        )
        results = [values.unflatten(0, (x.count, N)) for values in results]
        return [Perturbed(base, values, (None,) * base.ndim) for base, values in zip(call.bases, results, strict=True)]
    _, mean, rstd = call.bases
    grouped = x.reshape(N, groups, -1)
    normalized = ((grouped - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)).reshape(x.shape)
    trailing = x.ndim - 2
    return _others_at_base(call, [_affine(call, normalized, _shaped(weight, trailing), _shaped(bias, trailing))])


@rule("_native_batch_norm_legit.no_stats")
def batch_norm_training(call: OperationCall) -> Results:
    """Normalization by the statistics of the batch, channel by channel."""
    x, weight, bias, _, _, eps = call.args
    return _batch_norm(call, x, weight, bias, None, eps)


@rule("_native_batch_norm_legit_no_training.default")
def batch_norm_evaluation(call: OperationCall) -> Results:
    """Normalization by running statistics."""
    x, weight, bias, mean, variance, _, eps = call.args
    if isinstance(mean, Perturbed) or isinstance(variance, Perturbed):
        raise NoRuleError
    return _batch_norm(call, x, weight, bias, (mean, variance), eps)


def _batch_norm(
    call: OperationCall,
    x: Tensor | Perturbed,
    weight: Tensor | Perturbed | None,
    bias: Tensor | Perturbed | None,
    statistics: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Results:
    trailing = call.base.ndim - 2
    if not isinstance(x, Perturbed):
        normalized = _normalized(x.unsqueeze(0), statistics, eps, trailing)[0][0]
        return _others_at_base(call, [_affine(call, normalized, _shaped(weight, trailing), _shaped(bias, trailing))])
    if isinstance(weight, Perturbed) or isinstance(bias, Perturbed):
        raise NoRuleError
    if statistics is None:
        x = x.widened([d for d in range(x.base.ndim) if d != 1])
    region = (None, x.region[1], *(None,) * trailing)
    picked = None
    if statistics is not None:
        picked = tuple(_picked(statistic, region, trailing) for statistic in statistics)
    values, mean, rstd = _normalized(x.values, picked, eps, trailing)  # type: ignore[arg-type]
    for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            values = combine(values, _picked(parameter, region, trailing))
    result = Perturbed(call.base, values, x.region)
    if statistics is not None:
        return _others_at_base(call, [result])
    channels = (x.count, -1)
    of_channels = zip(call.bases[1:], (mean.reshape(channels), rstd.reshape(channels)), strict=True)
    return [result, *(Perturbed(base, statistic, x.region[1:2]) for base, statistic in of_channels)]


def _picked(statistic: Tensor, region: Sequence[object], trailing: int) -> Tensor:
    """Entries of a vector over channels for the channels of a region, shape (K or 1, 1, channels, 1, …)."""
    found = pick(statistic, (region[1],))  # type: ignore[arg-type]
    return found.reshape(found.shape[0], 1, -1, *(1,) * trailing)


def _normalized(
    x: Tensor, statistics: tuple[Tensor, Tensor] | None, eps: float, trailing: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(x − mean) / √(variance + eps) for x of shape (K, batch, channels, …), the mean, and 1 / √(variance + eps)."""
    if statistics is None:
        dims = (1, *range(3, x.ndim))
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    else:
        mean, variance = (s.reshape(1, 1, -1, *(1,) * trailing) if s.ndim == 1 else s for s in statistics)
    rstd = torch.rsqrt(variance + eps)
    return (x - mean).mul_(rstd), mean, rstd


@rule("_weight_norm_interface.default")
def weight_norm(call: OperationCall) -> Results:
    """g · v / ‖v‖ by rows: one coordinate of v changes its row."""
    v, g = call.args[:2]
    if call.arg(2, "dim", 0) != 0 or call.base.ndim < 2:
        raise NoRuleError
    if isinstance(v, Perturbed):
        v = v.widened(range(1, call.base.ndim))
    region = common_region(all_perturbed([v, g]), call.base.shape)
    v, g = (restricted(x, region, call.base.ndim) for x in (v, g))
    norm = torch.linalg.vector_norm(v, dim=tuple(range(1 - call.base.ndim, 0)), keepdim=True)
    values = v * (g / norm)
    norms = norm.expand(values.shape[0], *values.shape[1:2], *norm.shape[-call.base.ndim + 1 :])
    return [Perturbed(call.base, values, region), Perturbed(call.bases[1], norms, region)]
