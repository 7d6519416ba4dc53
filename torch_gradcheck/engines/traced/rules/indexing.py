"""Rules for embeddings, indexing and losses over classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, pick
from torch_gradcheck.engines.traced.rules.pointwise import common_region
from torch_gradcheck.engines.traced.rules.reductions import dimensions
from torch_gradcheck.engines.traced.rules.registry import NoRuleError, OperationCall, Results, perturbed_only, rule
from torch_gradcheck.engines.traced.rules.views import selected

MASKS = (torch.bool, torch.uint8)
"""Dtypes of index tensors that say of every entry whether it is taken."""


@rule("embedding.default")
def embedding(call: OperationCall) -> Results:
    """weight[indices]: one coordinate of the weight changes one column, at the positions that look its row up."""
    perturbed_only(call, 0)
    weight: Perturbed = call.args[0]
    indices: Tensor = call.args[1]
    row, column = weight.region
    if row is None or row.length != 1:
        weight = weight.widened([0])
        return [Perturbed(call.base, weight.values[:, indices], (*(None,) * indices.ndim, weight.region[1]))]
    region = (*(None,) * indices.ndim, column)
    looked_up = indices.unsqueeze(0) == torch.from_numpy(row.starts).reshape(-1, *(1,) * indices.ndim)
    values = weight.values.reshape(weight.count, *(1,) * indices.ndim, -1)
    return [Perturbed(call.base, torch.where(looked_up.unsqueeze(-1), values, pick(call.base, region)), region)]


@rule("index_select.default")
def index_select(call: OperationCall) -> Results:
    """x at some indices of one dimension."""
    perturbed_only(call, 0)
    x: Perturbed = call.args[0]
    d = dimensions(call.args[1], x.base.ndim)[0]
    x = x.widened([d])
    return [Perturbed(call.base, x.values.index_select(d + 1, call.args[2]), x.region)]


@rule("index.Tensor")
def index(call: OperationCall) -> Results:
    """x[i, j, …] with index tensors or masks that are not perturbed, of consecutive dimensions."""
    perturbed_only(call, 0)
    x: Perturbed = call.args[0]
    given = _without_masks(call.args[1])
    used = [position for position, each in enumerate(given) if each is not None]
    single = {position: int(each) for position, each in enumerate(given) if each is not None and not each.ndim}
    if len(single) == len(used):
        return [_at_one_index(x, single)]
    if len(used) > 1 and used != list(range(used[0], used[-1] + 1)):
        raise NoRuleError  # torch puts the indexed dimensions in front
    x = x.widened(used)
    found = x.values[(slice(None), *(slice(None) if each is None else each for each in given))]
    middle = call.base.ndim - (x.base.ndim - len(used))
    region = (*x.region[: used[0]], *(None,) * middle, *x.region[used[-1] + 1 :])
    return [Perturbed(call.base, found, region)]


def _without_masks(given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same index with the positions of a mask's entries in its place, one index tensor a dimension of it."""
    return [
        position
        for each in given
        for position in (each.nonzero(as_tuple=True) if each is not None and each.dtype in MASKS else (each,))
    ]


def _at_one_index(x: Perturbed, at: dict[int, int]) -> Perturbed | None:
    """x at one index of some dimensions; None where no perturbation changes it there, as one of another expert."""
    found: Perturbed | None = x
    for d in sorted(at, reverse=True):
        if found is not None:
            found = selected(found, d, at[d] % found.base.shape[d], found.base.select(d, at[d]))
    return found


@rule("index_add.default")
def index_add(call: OperationCall) -> Results:
    """x with the slices of a source added at some indices of one dimension: deltas are added up alike."""
    perturbed_only(call, 0, 3)
    x, dim, indices, source = call.args
    if call.kwargs.get("alpha", 1) != 1 or not call.base.ndim:
        raise NoRuleError
    if not isinstance(source, Perturbed):
        return [Perturbed(call.base, None, x.region, x.deltas)]
    d = dim % call.base.ndim
    source = source.widened([d])
    extents = [n if span is None else span.length for n, span in zip(call.base.shape, source.region, strict=True)]
    added = call.base.new_zeros((call.count, *extents)).index_add_(d + 1, indices, source.deltas)
    result = Perturbed(call.base, None, source.region, added)
    if not isinstance(x, Perturbed):
        return [result]
    region = common_region([x, result], call.base.shape)
    whole = [d for d, span in enumerate(region) if span is None]
    return [Perturbed(call.base, None, region, x.widened(whole).deltas + result.widened(whole).deltas)]


@rule("nll_loss_forward.default")
def nll_loss(call: OperationCall) -> Results:
    """−Σ wᵢ·x[i, targetᵢ], divided by the sum of the weights where it is a mean."""
    perturbed_only(call, 0)
    x, target, weight, reduction, ignored = call.args
    if reduction not in (1, 2) or x.base.ndim != 2:
        raise NoRuleError
    x = x.widened()
    valid = target != ignored
    safe = target.where(valid, 0)
    factors = valid.to(x.base.dtype) if weight is None else weight[safe] * valid
    if reduction == 1:
        factors = factors / call.bases[1]
    positions = torch.arange(target.shape[0], device="cpu") * x.base.shape[1] + safe
    picked = x.stored.reshape(x.count, -1).index_select(1, positions)
    return [x.like(call.base, picked @ -factors, ()), None]
