"""The rule that covers every operation: all of K copies of its inputs, by vmap or one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.chunks import is_out_of_memory
from torch_gradcheck.engines.traced.mutations import OnCopies
from torch_gradcheck.engines.traced.rules import Call, Results, all_touched, map_tensors
from torch_gradcheck.engines.traced.tape import flatten
from torch_gradcheck.engines.traced.touched import Touched

_without_vmap: set[Any] = set()
"""Operations that vmap has failed on in this process."""


@contextmanager
def vmap_or_nothing() -> Iterator[None]:
    """Let vmap fail where it would loop: our loop is faster, and does not warn. A switch of the whole process."""
    functorch: Any = torch._C._functorch
    enabled = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(enabled)


def general(call: Call) -> Results:
    """Evaluate any operation for K perturbations."""
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
    return [Touched(base, new, (None,) * base.ndim) for base, new in zip(call.bases, results, strict=True)]


def _by_vmap(call: Call, dense: Any) -> list[Tensor]:
    batched = [x.new for x in all_touched(dense)]

    def function(*slices: Tensor) -> tuple[Tensor, ...]:
        queue = iter(slices)
        args, kwargs = map_tensors(dense, lambda x: next(queue) if isinstance(x, Touched) else x)
        return tuple(flatten(call.func(*args, **dict(zip(call.kwargs, kwargs, strict=True)))))

    return list(torch.vmap(function)(*batched))


def _by_loop(call: Call, dense: Any) -> list[Tensor]:
    rows = []
    for k in range(call.count):
        args, kwargs = map_tensors(dense, partial(_slice, k))
        rows.append(flatten(call.func(*args, **dict(zip(call.kwargs, kwargs, strict=True)))))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _widened(x: Tensor | Touched) -> Tensor | Touched:
    return x.widened() if isinstance(x, Touched) else x


def _slice(k: int, x: Tensor | Touched) -> Tensor:
    return x.new[k] if isinstance(x, Touched) else x
