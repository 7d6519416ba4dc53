"""Rules for elementwise operations: the entries that a perturbation changes stay where they are."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.engines.traced.rules.by_vmap import by_vmap
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
from torch_gradcheck.torch_internals.operations import flatten, in_place_form, overload, overloads, written_arguments

ADD, SUB, MUL = overload("add.Tensor"), overload("sub.Tensor"), overload("mul.Tensor")


def pointwise(call: OperationCall) -> Results:
    """An elementwise operation; its operands are broadcast against each other."""
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
    return [Perturbed(base, _cast(values, base), region) for base, values in zip(call.bases, results, strict=True)]


def _dense_operands(call: OperationCall) -> Any:
    """The operands for a call without regions, the common case and the fast one.

    None where an operand is perturbed in part or broadcast, or where there are lists or keyword arguments.
    """
    if call.kwargs:
        return None
    operands = []
    for x in call.args:
        if isinstance(x, (tuple, list)) or (
            isinstance(x, Perturbed) and not (x.full and x.base.ndim == call.base.ndim)
        ):
            return None
        operands.append(x.values if isinstance(x, Perturbed) else x)
    return operands


def _in_place(call: OperationCall, region: Region) -> Any:
    """The in-place form, if the first operand is large, fills the result and is read by no other operation."""
    x = call.args[0]
    if not isinstance(x, Perturbed) or not x.spare or x.values.numel() < _WORTH_LOOKING_AT:
        return None
    extents = [span.length if span is not None else n for span, n in zip(region, call.base.shape, strict=True)]
    if list(x.values.shape[1:]) != extents or x.values.dtype != call.base.dtype or len(call.bases) != 1:
        return None
    if any(given is x for given in call.args[1:]) or call.kwargs:
        return None
    return _in_place_form(call.func)


_in_place_form = cache(in_place_form)

_WORTH_LOOKING_AT = 4096
"""Entries from which looking for a way to work in place takes less time than it saves."""


@rule("add.Tensor", "sub.Tensor")
def sum_or_difference(call: OperationCall) -> Results:
    """x ± α·y: the deltas add up, and those of an operand that is not perturbed are 0."""
    x, y = call.args
    if any(isinstance(operand, Perturbed) and not _deltas_fit(operand, call) for operand in (x, y)):
        if call.func is ADD and not call.kwargs and _is_spare(y) and not _is_spare(x):
            call = OperationCall(call.func, (y, x), {}, call.bases, call.count)
        return pointwise(call)
    if not isinstance(y, Perturbed):
        return [Perturbed(call.base, None, x.region, x.stored)]
    factor = call.kwargs.get("alpha", 1) * (-1 if call.func is SUB else 1)
    if not isinstance(x, Perturbed):
        return [Perturbed(call.base, None, y.region, y.stored if factor == 1 else factor * y.stored)]
    region = common_region([x, y], call.base.shape)
    x, y = (operand.widened([d for d, span in enumerate(region) if span is None]) for operand in (x, y))
    out = x.stored if x.spare and x.stored.shape == y.stored.shape else None
    return [Perturbed(call.base, None, region, torch.add(x.stored, y.stored, alpha=factor, out=out))]


@rule("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar")
def scaled(call: OperationCall) -> Results:
    """x · c or x / c with a c that is not perturbed."""
    x, c = call.args
    if not isinstance(x, Perturbed) and call.func is MUL:
        x, c = c, x
    if not isinstance(x, Perturbed) or isinstance(c, Perturbed) or call.kwargs or not _deltas_fit(x, call):
        return pointwise(call)
    if isinstance(c, Tensor):
        c = restricted(c, x.region, call.base.ndim)
    func = (x.spare and _in_place_form(call.func)) or call.func
    return [Perturbed(call.base, None, x.region, func(x.stored, c))]


def _is_spare(x: Any) -> bool:
    return isinstance(x, Perturbed) and x.spare


def _deltas_fit(x: Perturbed, call: OperationCall) -> bool:
    """Whether an operand holds deltas, of the shape and dtype of the result."""
    return x.holds_deltas and x.base.shape == call.base.shape and x.base.dtype == call.base.dtype


@rule("tanh.default")
def tanh(call: OperationCall) -> Results:
    """tanh by numpy, 1.7 ns an entry where torch takes 5; the largest relative error of both is 2.2e-16."""
    x: Perturbed = call.args[0]
    if x.base.dtype != torch.float64:
        return pointwise(call)
    values = x.values.resolve_neg().numpy()
    found = np.tanh(values, out=values if x.spare else None)
    return [Perturbed(call.base, torch.from_numpy(found), x.region)]


@rule("huber_loss.default")
def huber_loss(call: OperationCall) -> Results:
    """It is symmetric: vmap's kernel for a second argument alone warns on stderr of a result that it resizes."""
    x, y, *rest = call.args
    if not isinstance(x, Perturbed):
        call = OperationCall(call.func, (y, x, *rest), call.kwargs, call.bases, call.count)
    return by_vmap(call)


def common_region(operands: list[Perturbed], shape: torch.Size) -> Region:
    """The smallest region of the result that holds every entry which some operand can change."""
    region: list[Any] = []
    for d in range(-len(shape), 0):
        spans = [x.region[d] if -d <= x.base.ndim and x.base.shape[d] == shape[d] else None for x in operands]
        first = spans[0]
        agree = first is not None and all(span is not None and span.same(first) for span in spans[1:])
        region.append(first if agree else None)
    return tuple(region)


def restricted(x: Tensor | Perturbed, region: Region, ndim: int) -> Tensor:
    """The entries of an operand that a region of the result reads, shape (K or 1, …) with ndim more dimensions.

    An operand that needs no restriction comes as it is, without the leading dimension.
    """
    if isinstance(x, Perturbed):
        missing = [d for d in range(-x.base.ndim, 0) if x.region[d] is not None and region[d] is None]
        entries = x.widened([x.base.ndim + d for d in missing]).values if missing else x.values
    else:
        shape = x.shape
        own = tuple(region[d] if shape[d] != 1 else None for d in range(-x.ndim, 0))
        if all(span is None for span in own):
            return x
        entries = pick(x, own)
    lacking = ndim + 1 - entries.ndim
    return entries.reshape(entries.shape[0], *(1,) * lacking, *entries.shape[1:]) if lacking else entries


def _cast(values: Tensor, base: Tensor) -> Tensor:
    """The values in the dtype of the result: K values of a 0-dim tensor take part in type promotion, it does not."""
    return values if values.dtype == base.dtype else values.to(base.dtype)


def rule_of(func: Any) -> Rule | None:
    """The rule registered for an operation, else the elementwise one if torch tags it so, else None."""
    if func in RULES:
        return RULES[func]
    return pointwise if torch.Tag.pointwise in getattr(func, "tags", ()) else None


_UNTAGGED = (
    "_conj", "_prelu_kernel", "complex", "elu_backward", "hardsigmoid_backward", "hardswish", "hardswish_backward",
    "hardtanh_backward", "leaky_relu_backward", "rsub", "softplus_backward", "resolve_conj", "resolve_neg",
    "_neg_view", "mish_backward", "masked_fill", "special_entr", "logit_backward", "log_sigmoid_backward",
)  # fmt: skip
"""Elementwise operations that torch does not tag as such; a tape holds their functional forms only."""

RULES.update((form, pointwise) for form in overloads(*_UNTAGGED) if not written_arguments(form))


@rule("masked_fill.Tensor")
def masked_fill(call: OperationCall) -> Results:
    """The elementwise rule, but for a value that is perturbed: the operation takes one value only."""
    if isinstance(call.args[2], Perturbed):
        raise NoRuleError
    return pointwise(call)


@rule("clone.default", "alias.default", "detach.default", "lift_fresh.default")
def same(call: OperationCall) -> Results:
    """Copies: no rule writes to values that another operation reads, so copies share their memory."""
    x = call.args[0]
    return [x.like(call.base, x.stored, x.region)]


@rule("_to_copy.default")
def cast(call: OperationCall) -> Results:
    """Another dtype or device. Layouts stay, since the tape holds strided tensors only."""
    x = call.args[0]
    return [Perturbed(call.base, x.values.to(call.base.device, call.base.dtype), x.region)]


@rule("copy.default")
def copy(call: OperationCall) -> Results:
    """copy(self, source): the source in the dtype of self; where it is broadcast, `by_vmap` takes it."""
    x = call.args[1]
    if not isinstance(x, Perturbed):
        return [None]
    lacking = call.base.ndim - x.base.ndim
    if any(n != m for n, m in zip(x.base.shape, call.base.shape[lacking:], strict=True)) or lacking:
        raise NoRuleError
    return [Perturbed(call.base, x.values.to(call.base.dtype), x.region)]
