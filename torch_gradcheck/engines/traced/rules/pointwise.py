"""Rules for elementwise operations: what is touched stays touched, and nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Region, pick
from torch_gradcheck.engines.traced.rules.registry import (
    RULES,
    NoRuleError,
    OperationCall,
    Results,
    Rule,
    all_perturbed,
    map_tensors,
    rule,
)
from torch_gradcheck.engines.traced.rules.taylor import COEFFICIENTS, difference_quotient, is_small
from torch_gradcheck.torch_internals.operations import flatten

aten = torch.ops.aten


def pointwise(call: OperationCall) -> Results:
    """An elementwise operation, its operands broadcast against each other."""
    ndim = call.base.ndim
    args, kwargs = _dense_operands(call), call.kwargs
    region: Region = (None,) * ndim
    if args is None:
        arguments = (call.args, tuple(call.kwargs.values()))
        region = common_region(all_perturbed(arguments), call.base.shape)
        args, given = map_tensors(arguments, lambda x: restricted(x, region, ndim))
        kwargs = dict(zip(call.kwargs, given, strict=True))
    func = _in_place(call, region) or call.func
    results = flatten(func(*args, **kwargs))
    return [Perturbed(base, _cast(new, base), region) for base, new in zip(call.bases, results, strict=True)]


def _dense_operands(call: OperationCall) -> Any:
    """The operands as they are where all that is touched is touched in full, the case that is not to be slow."""
    if call.kwargs:
        return None
    operands = []
    for x in call.args:
        if isinstance(x, (tuple, list)) or (
            isinstance(x, Perturbed) and not (x.full and x.base.ndim == call.base.ndim)
        ):
            return None
        operands.append(x.new if isinstance(x, Perturbed) else x)
    return operands


def _in_place(call: OperationCall, region: Region) -> Any:
    """The operation in place, if its first operand is large, fills the result and is read by nobody else."""
    x = call.args[0]
    if not isinstance(x, Perturbed) or not x.spare or x.new.numel() < _WORTH_LOOKING_AT:
        return None
    extents = [span.length if span is not None else n for span, n in zip(region, call.base.shape, strict=True)]
    if list(x.new.shape[1:]) != extents or x.new.dtype != call.base.dtype or len(call.bases) != 1:
        return None
    if any(given is x for given in call.args[1:]) or call.kwargs:
        return None
    return _in_place_form(call.func)


@cache
def _in_place_form(func: Any) -> Any:
    packet = getattr(aten, func._schema.name.removeprefix("aten::") + "_", None)
    return getattr(packet, func._overloadname, None)


_WORTH_LOOKING_AT = 4096
"""Entries from which a faster way is worth asking whether it is open: in place, or by a polynomial."""


@rule(aten.add.Tensor, aten.sub.Tensor)
def sum_or_difference(call: OperationCall) -> Results:
    """x ± α·y: moves add up, and what does not move adds nothing to them."""
    x, y = call.args
    if any(isinstance(operand, Perturbed) and not _moves_alike(operand, call) for operand in (x, y)):
        if call.func is aten.add.Tensor and not call.kwargs and _is_spare(y) and not _is_spare(x):
            call = OperationCall(call.func, (y, x), {}, call.bases, call.count)
        return pointwise(call)
    if not isinstance(y, Perturbed):
        return [Perturbed(call.base, None, x.region, x.held)]
    factor = call.kwargs.get("alpha", 1) * (-1 if call.func is aten.sub.Tensor else 1)
    if not isinstance(x, Perturbed):
        return [Perturbed(call.base, None, y.region, y.held if factor == 1 else factor * y.held)]
    region = common_region([x, y], call.base.shape)
    x, y = (operand.widened([d for d, span in enumerate(region) if span is None]) for operand in (x, y))
    out = x.held if x.spare and x.held.shape == y.held.shape else None
    return [Perturbed(call.base, None, region, torch.add(x.held, y.held, alpha=factor, out=out))]


@rule(aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
def multiple(call: OperationCall) -> Results:
    """x · c or x / c with a c that does not move."""
    x, c = call.args
    if not isinstance(x, Perturbed) and call.func is aten.mul.Tensor:
        x, c = c, x
    if not isinstance(x, Perturbed) or isinstance(c, Perturbed) or call.kwargs or not _moves_alike(x, call):
        return pointwise(call)
    if isinstance(c, Tensor):
        c = restricted(c, x.region, call.base.ndim)
    func = _in_place_form(call.func) if x.spare else call.func
    return [Perturbed(call.base, None, x.region, func(x.held, c))]


def _is_spare(x: Any) -> bool:
    return isinstance(x, Perturbed) and x.spare


def _moves_alike(x: Perturbed, call: OperationCall) -> bool:
    """Whether an operand holds moves of the very entries of the result."""
    return x.is_moves and x.base.shape == call.base.shape and x.base.dtype == call.base.dtype


@rule(*COEFFICIENTS)
def analytic(call: OperationCall) -> Results:
    """A function by its Taylor polynomial, where x moved so little that the polynomial is exact to the last digit."""
    x: Perturbed = call.args[0]
    worthwhile = x.held.numel() >= _WORTH_LOOKING_AT and x.base.is_floating_point()
    d = x.delta() if worthwhile and x.base.dtype == call.base.dtype else None
    if d is None or not is_small(d, x.bound):
        return pointwise(call)
    y = pick(call.base, x.region)
    quotient = difference_quotient(call.func, y, d)
    if x.is_moves:
        return [Perturbed(call.base, None, x.region, quotient.mul_(d))]
    return [Perturbed(call.base, torch.addcmul(y, d, quotient, out=quotient), x.region)]


def common_region(operands: list[Perturbed], shape: torch.Size) -> Region:
    """The smallest region of the result that holds what any operand touches."""
    region: list[Any] = []
    for d in range(-len(shape), 0):
        spans = [x.region[d] if -d <= x.base.ndim and x.base.shape[d] == shape[d] else None for x in operands]
        first = spans[0]
        agree = first is not None and all(span is not None and span.same(first) for span in spans[1:])
        region.append(first if agree else None)
    return tuple(region)


def restricted(x: Tensor | Perturbed, region: Region, ndim: int) -> Tensor:
    """The entries of an operand that meet a region of the result, shape (K or 1, …) with ndim dimensions more."""
    if isinstance(x, Perturbed):
        missing = [d for d in range(-x.base.ndim, 0) if x.region[d] is not None and region[d] is None]
        new = x.widened([x.base.ndim + d for d in missing]).new if missing else x.new
    else:
        shape = x.shape
        own = tuple(region[d] if shape[d] != 1 else None for d in range(-x.ndim, 0))
        if all(span is None for span in own):
            return x
        new = pick(x, own)
    lacking = ndim + 1 - new.ndim
    return new.reshape(new.shape[0], *(1,) * lacking, *new.shape[1:]) if lacking else new


def _cast(new: Tensor, base: Tensor) -> Tensor:
    """A 0-dim tensor takes no part in type promotion, its batch of values does."""
    return new if new.dtype == base.dtype else new.to(base.dtype)


def rule_of(func: Any) -> Rule | None:
    """The rule registered for an operation, or the elementwise one if torch says it is elementwise."""
    if func in RULES:
        return RULES[func]
    return pointwise if torch.Tag.pointwise in getattr(func, "tags", ()) else None


_UNTAGGED = (
    "_conj", "_prelu_kernel", "complex", "elu_backward", "hardsigmoid_backward", "hardswish", "hardswish_backward",
    "hardtanh_backward", "leaky_relu_backward", "rsub", "softplus_backward", "resolve_conj", "resolve_neg",
    "_neg_view", "mish_backward", "masked_fill", "special_entr", "logit_backward", "log_sigmoid_backward",
)  # fmt: skip

for _name in _UNTAGGED:
    for _overload in getattr(aten, _name).overloads() if hasattr(aten, _name) else ():
        RULES[getattr(getattr(aten, _name), _overload)] = pointwise


@rule(aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh.default)
def same(call: OperationCall) -> Results:
    """Copies: values are never written to, so the touched ones can be shared."""
    x = call.args[0]
    return [x.like(call.base, x.held, x.region)]


@rule(aten._to_copy.default)
def cast(call: OperationCall) -> Results:
    """Another dtype; layouts and devices stay, since the tape holds plain CPU tensors only where it casts."""
    x = call.args[0]
    return [Perturbed(call.base, x.new.to(call.base.device, call.base.dtype), x.region)]


@rule(aten.copy.default)
def copy(call: OperationCall) -> Results:
    """copy(self, source): the source in the shape and dtype of self."""
    x = call.args[1]
    if not isinstance(x, Perturbed):
        return [None]
    lacking = call.base.ndim - x.base.ndim
    if any(n != m for n, m in zip(x.base.shape, call.base.shape[lacking:], strict=True)) or lacking:
        raise NoRuleError
    return [Perturbed(call.base, x.new.to(call.base.dtype), x.region)]
