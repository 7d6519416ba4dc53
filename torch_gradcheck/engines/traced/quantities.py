"""The quantities that J is computed from on the way from θ: the results of its recorded operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.program import Program
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.torch_internals.dispatch import modes_disabled
from torch_gradcheck.torch_internals.operations import OpOverload, flatten, is_view


def quantities_on_the_way(program: Program) -> list[Tensor]:
    """What every operation between θ and J gives at what the parameters hold now, in order, real numbers in float64.

    Views are left out: they hold the numbers of what they are views of. So are whole numbers and truth values. The
    list is the same, tensor by tensor, wherever the parameters are.

    Raises:
        Untraceable: an operation cannot be run again on these values.
    """
    found: list[Tensor] = []

    def kept(func: Any) -> Callable[..., Any]:
        if isinstance(func, OpOverload) and is_view(func):
            return func

        def call(*args: Any, **kwargs: Any) -> Any:
            results = func(*args, **kwargs)
            found.extend([_real(x) for x in flatten(results) if _is_continuous(x)])
            return results

        return call

    with modes_disabled(), torch.no_grad():
        try:
            program.replayed([program.values[number] for number in program.parameters], kept)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise Untraceable(f"the record cannot be run again: {error}") from error
    return found


def _is_continuous(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _real(x: Tensor) -> Tensor:
    dense = x.to_dense() if x.layout is not torch.strided else x
    return real_view(dense.resolve_conj()).double().clone()
