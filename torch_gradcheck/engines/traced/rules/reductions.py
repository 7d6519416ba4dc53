"""Rules for operations along dimensions: sums, means, softmax, extremes, scans."""

from __future__ import annotations

from typing import Any

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Span
from torch_gradcheck.engines.traced.rules.registry import (
    NoRuleError,
    OperationCall,
    Results,
    Rule,
    perturbed_only,
    rule,
)
from torch_gradcheck.torch_internals.operations import existing, flatten

_OF_ONE_DIMENSION = existing("argmax.default", "argmin.default")

_MEANS = existing("mean.default", "mean.dim")


def dimensions(given: Any, ndim: int) -> list[int]:
    """Dimensions as non-negative numbers; None and () stand for all of them."""
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return list(range(ndim))
    return [d % ndim if ndim else 0 for d in ((given,) if isinstance(given, int) else given)]


@rule("sum.default", "sum.dim_IntList", "mean.default", "mean.dim")
def sum_or_mean(call: OperationCall) -> Results:
    """Σ x or its mean: where x is perturbed in part, the sum of its deltas is the delta of the result."""
    x: Perturbed = call.args[0]
    if call.kwargs.get("dtype") not in (None, x.base.dtype) or x.base.dtype != call.base.dtype:
        raise NoRuleError
    ndim = x.base.ndim
    dims = dimensions(call.arg(1, "dim"), ndim)
    keepdim = bool(call.arg(2, "keepdim", False))
    inner = [d for d in dims if x.region[d] is not None]
    region = _kept(x.region, dims, keepdim)
    divisor = 1
    for d in dims if call.func in _MEANS else ():
        divisor *= x.base.shape[d]
    summands = x.deltas if inner else x.stored
    total = summands.sum([d + 1 for d in dims], keepdim) if dims else summands
    total = total / divisor if divisor != 1 else total
    return [Perturbed(call.base, None, region, total) if inner else x.like(call.base, total, region)]


def _kept(region: tuple[Span | None, ...], dims: list[int], keepdim: bool) -> tuple[Span | None, ...]:
    if keepdim:
        return tuple(None if d in dims else span for d, span in enumerate(region))
    return tuple(span for d, span in enumerate(region) if d not in dims)


def reduction(position: int, keepdim_position: int) -> Rule:
    """A rule for an operation that reduces over dimensions.

    Args:
        position: of `dim` among the arguments.
        keepdim_position: of `keepdim` among the arguments.
    """

    def reduce(call: OperationCall) -> Results:
        perturbed_only(call, 0)
        x: Perturbed = call.args[0]
        ndim = x.base.ndim
        dims = dimensions(call.arg(position, "dim"), ndim)
        x = x.widened(dims)
        region = _kept(x.region, dims, bool(call.arg(keepdim_position, "keepdim", False)))
        single = isinstance(call.arg(position, "dim"), int)
        if not single and call.func in _OF_ONE_DIMENSION:
            raise NoRuleError  # their `dim` cannot be a list of all
        args = _with_dims(call, x, position, dims[0] + 1 if single else [d + 1 for d in dims])
        kwargs = {key: given for key, given in call.kwargs.items() if key != "dim"}
        results = flatten(call.func(*args, **kwargs))
        return [Perturbed(base, values, region) for base, values in zip(call.bases, results, strict=True)]

    return reduce


def _with_dims(call: OperationCall, x: Perturbed, position: int, dims: int | list[int]) -> tuple[Any, ...]:
    if position > len(call.args):
        raise NoRuleError
    return (x.values, *call.args[1:position], dims, *call.args[position + 1 :])


def along(position: int) -> Rule:
    """A rule for an operation along one dimension that keeps all others; `position` is that of `dim`."""

    def scan(call: OperationCall) -> Results:
        perturbed_only(call, 0)
        x: Perturbed = call.args[0]
        if not x.base.ndim:
            raise NoRuleError
        d = call.arg(position, "dim", -1) % x.base.ndim
        x = x.widened([d])
        kwargs = {key: given for key, given in call.kwargs.items() if key != "dim"}
        results = flatten(call.func(*_with_dims(call, x, position, d + 1), **kwargs))
        return [Perturbed(base, values, x.region) for base, values in zip(call.bases, results, strict=True)]

    return scan


@rule("_softmax.default", "_log_softmax.default", "_safe_softmax.default")
def softmax(call: OperationCall) -> Results:
    """Softmax or its logarithm along a dimension that is perturbed in full, which is moved in front.

    torch takes 2 to 3 ns an entry there, and 10 to 15 along the last dimension.
    """
    x: Perturbed = call.args[0]
    if not x.base.ndim or x.base.dtype != call.base.dtype:
        raise NoRuleError
    axis = dimensions(call.args[1], x.base.ndim)[0]
    x = x.widened([axis])
    in_front = x.values.movedim(axis + 1, 1).contiguous()
    found = call.func(in_front, 1, *call.args[2:], **call.kwargs)
    return [Perturbed(call.base, found.movedim(1, axis + 1), x.region)]


_REDUCTIONS = {
    "amax.default": (1, 2), "amin.default": (1, 2), "argmax.default": (1, 2), "argmin.default": (1, 2),
    "logsumexp.default": (1, 2), "var.correction": (1, 9), "std.correction": (1, 9), "var_mean.correction": (1, 9),
    "max.dim": (1, 2), "min.dim": (1, 2), "prod.dim_int": (1, 2), "linalg_vector_norm.default": (2, 3),
    "norm.ScalarOpt_dim": (2, 3), "any.dim": (1, 2), "all.dim": (1, 2), "median.dim": (1, 2),
}  # fmt: skip
"""Operation → positions of `dim` and of `keepdim`; 9 where it takes `keepdim` by name only."""

_SCANS = {
    "cumsum.default": 1, "cumprod.default": 1, "logcumsumexp.default": 1, "sort.default": 1, "topk.default": 2,
}  # fmt: skip
"""Operation → position of `dim`."""

for _name, _positions in _REDUCTIONS.items():
    rule(_name)(reduction(*_positions))

for _name, _position in _SCANS.items():
    rule(_name)(along(_position))
