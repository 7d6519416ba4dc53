"""Rules for matrix products.

With A perturbed in a box of rows r and columns c, C = A·B changes in the rows r alone:

    C[r, :] at θ + h·e  −  C[r, :] at θ  =  (A[r, c] at θ + h·e  −  A[r, c] at θ) · B[c, :]

One column of A takes an outer product, and one coordinate of a weight takes no product at all. The difference of two
neighbouring numbers is not rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Region, pick, pick_each, place
from torch_gradcheck.engines.traced.rules.pointwise import common_region, restricted
from torch_gradcheck.engines.traced.rules.registry import NoRuleError, OperationCall, Results, rule


@rule("mm.default", "bmm.default")
def product(call: OperationCall) -> Results:
    """A·B, or one product for every index of the first dimension."""
    return [multiplied(call.args[0], call.args[1], call.base, None)]


@rule("addmm.default", "baddbmm.default")
def product_and_sum(call: OperationCall) -> Results:
    """bias + A·B."""
    if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        raise NoRuleError
    bias, A, B = call.args
    start = bias.base if isinstance(bias, Perturbed) else bias
    result = None
    if isinstance(A, Perturbed) or isinstance(B, Perturbed):
        result = multiplied(A, B, call.base, start)
    if isinstance(bias, Perturbed):
        result = plus_difference(result, bias, call.base)
    return [result]


@rule("mv.default")
def matrix_times_vector(call: OperationCall) -> Results:
    """A·v."""
    A, v = call.args
    C = multiplied(A, _unsqueezed(v, 1), call.base.unsqueeze(1), None)
    return [C.like(call.base, C.stored.squeeze(2), C.region[:1])]


@rule("dot.default", "vdot.default")
def dot(call: OperationCall) -> Results:
    """Σ u·v."""
    u, v = call.args
    if call.base.is_complex():
        raise NoRuleError
    C = multiplied(_unsqueezed(u, 0), _unsqueezed(v, 1), call.base.reshape(1, 1), None)
    return [C.like(call.base, C.stored.reshape(-1), ())]


def _unsqueezed(x: Tensor | Perturbed, d: int) -> Tensor | Perturbed:
    return x.unsqueezed(d) if isinstance(x, Perturbed) else x.unsqueeze(d)


def plus_difference(x: Perturbed | None, summand: Perturbed, base: Tensor) -> Perturbed:
    """x, or `base` where x is None, plus the deltas of the perturbed summand, which is broadcast."""
    difference = Perturbed(summand.base, summand.deltas, summand.region)
    operands = [difference] if x is None else [x, difference]
    region = common_region(operands, base.shape)
    zeros = Perturbed(summand.base.new_zeros(()).expand_as(summand.base), difference.values, difference.region)
    start = pick(base, region) if x is None else restricted(x, region, base.ndim)
    return Perturbed(base, start + restricted(zeros, region, base.ndim), region)


def multiplied(A: Tensor | Perturbed, B: Tensor | Perturbed, C: Tensor, bias: Tensor | None) -> Perturbed:
    """(bias +) A·B for K perturbations; C is its value at θ, and leading dimensions are a batch of products."""
    if isinstance(A, Tensor):
        if isinstance(B, Tensor):
            raise TypeError("neither factor is perturbed")
        turned = multiplied(_transposed(B), A.mT, C.mT, None if bias is None else _turned_bias(bias, C))
        return _transposed(turned)
    if isinstance(B, Tensor):
        return _times_fixed(A, B, C, bias)
    return _both_perturbed(A, B, C, bias)


def _turned_bias(bias: Tensor, C: Tensor) -> Tensor:
    return bias.expand_as(C).mT


def _transposed(x: Perturbed) -> Perturbed:
    return x.like(x.base.mT, x.stored.mT, (*x.region[:-2], x.region[-1], x.region[-2]))


def _times_fixed(A: Perturbed, B: Tensor, C: Tensor, bias: Tensor | None) -> Perturbed:
    """A perturbed, B as at θ."""
    *batch, rows, columns = A.region
    region: Region = (*batch, rows, None)
    if columns is not None and 2 * columns.length <= A.base.shape[-1]:
        W = pick(B, (*batch, columns, None)).contiguous()
        if columns.length == 1:
            return Perturbed(C, None, region, A.deltas * W)
        return Perturbed(C, None, region, _matmul(A.deltas, W))
    A = A.widened([A.base.ndim - 1])
    if A.holds_deltas:
        bias = None  # its deltas are 0
    if bias is not None and bias.ndim == 1 and C.ndim == 2:
        return Perturbed(C, _rows_times(A.stored, B, bias), region)
    stored = _matmul(A.stored, pick(B, (*batch, None, None)))
    if bias is not None:
        stored += pick(bias.expand_as(C), region)
    return A.like(C, stored, region)


def _matmul(A: Tensor, B: Tensor) -> Tensor:
    """(K, …, R, C) times (K or 1, …, C, N), in one matrix product where B is the same for all perturbations."""
    if B.shape[0] != 1:
        return A @ B
    B = B[0]
    if B.ndim == 2:
        return _rows_times(A, B) if A.ndim == 3 else A @ B
    if A.shape[2:].numel() <= B.shape[1:].numel() or A.ndim > 4:
        return A @ B
    # A batch of products whose B is the same for all perturbations: rows side by side need no copies of B.
    K, batch, R, C = A.shape
    rows = A.transpose(0, 1).reshape(batch, K * R, C)
    return torch.bmm(rows, B).reshape(batch, K, R, -1).transpose(0, 1)


TILE = 12
"""Columns that BLAS multiplies at a time; columns left over after whole tiles are far slower."""

WORTH_PADDING = range(6, 48)
"""Numbers of columns at which the ones left over take a large share of the time."""


def _rows_times(A: Tensor, B: Tensor, bias: Tensor | None = None) -> Tensor:
    """(K, R, C) times (C, N), plus a vector, in one matrix product.

    Columns of zeros fill B up to whole tiles where that pays. With MKL on an EPYC, 10 columns then took 0.55 of the
    time and 32 took 0.75, the copy of the wanted columns included.
    """
    rows, columns = A.flatten(0, 1), B.shape[1]
    lacking = -columns % TILE if columns in WORTH_PADDING else 0
    if lacking:
        B = F.pad(B, (0, lacking))
        bias = None if bias is None else F.pad(bias, (0, lacking))
    product: Tensor = rows @ B if bias is None else torch.addmm(bias, rows, B)
    if lacking:
        product = product[:, :columns].contiguous()
    return product.reshape(*A.shape[:2], columns)


def _both_perturbed(A: Perturbed, B: Perturbed, C: Tensor, bias: Tensor | None) -> Perturbed:
    """A·B with both perturbed, as when a weight acts on its own output one time step later."""
    *batch, inner, columns = B.region
    thin = inner is not None and 2 * inner.length <= B.base.shape[-2] and all(span is None for span in batch)
    if not thin or any(span is not None for span in A.region[:-2]):
        A, B = A.widened(), B.widened()
        values = A.values @ B.values
        return Perturbed(C, values if bias is None else values.add_(bias), (None,) * C.ndim)
    # A·B at θ + h·e is A·(B at θ) with A at θ + h·e, plus A's columns times B's deltas.
    outcome = _times_fixed(A, B.base, C, bias).widened([C.ndim - 2, C.ndim - 1])
    A = A.widened([A.base.ndim - 2, A.base.ndim - 1])
    picked = pick_each(A.values, (*(None,) * (A.base.ndim - 1), inner))
    update = picked * B.deltas if picked.shape[-1] == 1 else picked @ B.deltas
    stored = place(outcome.stored, (*(None,) * (C.ndim - 1), columns), update, accumulate=True)
    return outcome.like(C, stored, (None,) * C.ndim)
