"""The rule for every operation without one of its own: K copies of its inputs, by vmap or one after the other."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed
from torch_gradcheck.engines.traced.rules.registry import OperationCall, Results, all_perturbed, map_tensors
from torch_gradcheck.torch_internals.devices import is_out_of_memory
from torch_gradcheck.torch_internals.functional_forms import OnCopies
from torch_gradcheck.torch_internals.operations import flatten

_without_vmap: set[Any] = set()
"""Operations on which vmap has failed in this process."""


def by_vmap(call: OperationCall) -> Results:
    """Any operation for K perturbations, on whole tensors."""
    dense = map_tensors((call.args, tuple(call.kwargs.values())), _widened)
    results = None
    if call.func not in _without_vmap and not isinstance(call.func, OnCopies):
        try:
            results = _by_vmap(call, dense)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            _without_vmap.add(call.func)
    if results is None:
        results = _by_loop(call, dense)
    return [Perturbed(base, values, (None,) * base.ndim) for base, values in zip(call.bases, results, strict=True)]


def _by_vmap(call: OperationCall, dense: Any) -> list[Tensor]:
    batched = [x.values for x in all_perturbed(dense)]

    def function(*slices: Tensor) -> tuple[Tensor, ...]:
        queue = iter(slices)
        args, kwargs = map_tensors(dense, lambda x: next(queue) if isinstance(x, Perturbed) else x)
        return tuple(flatten(call.func(*args, **dict(zip(call.kwargs, kwargs, strict=True)))))

    return list(torch.vmap(function)(*batched))


def _by_loop(call: OperationCall, dense: Any) -> list[Tensor]:
    rows = []
    for k in range(call.count):
        args, kwargs = map_tensors(dense, partial(_slice, k))
        rows.append(flatten(call.func(*args, **dict(zip(call.kwargs, kwargs, strict=True)))))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _widened(x: Tensor | Perturbed) -> Tensor | Perturbed:
    return x.widened() if isinstance(x, Perturbed) else x


def _slice(k: int, x: Tensor | Perturbed) -> Tensor:
    return x.values[k] if isinstance(x, Perturbed) else x
