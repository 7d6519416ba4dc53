"""The gradient of a recorded J by aten's own formulas: custom backwards, hooks and detachments have no say.

The record numbers memory, so it contains what `detach`, `.data` or a custom autograd.Function hides from autograd. Its
operations run again on leaves in the place of the parameters, and one backward gives the derivative of what J computes.
This proves nothing: an operation may have a wrong formula, or be constant where J is not differentiable. The result is
a gradient to verify against J, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.program import Program
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.torch_internals.dispatch import modes_disabled
from torch_gradcheck.torch_internals.operations import existing


def gradient_by_record(program: Program, wanted: Sequence[int] | None = None) -> list[Tensor | None]:
    """The gradient of J by every parameter of the program, None where J does not depend on it.

    Args:
        program: the record.
        wanted: numbers of the parameters; those of others are None as well. None: all.

    Raises:
        Untraceable: an operation cannot be differentiated, or not on these values.
    """
    leaves = [program.values[number].detach().requires_grad_() for number in program.parameters]
    with modes_disabled(), torch.enable_grad():
        try:
            J = program.replayed(leaves, lambda func: _DIFFERENTIABLE.get(func, func))
            if not J.requires_grad:
                return [None for _ in leaves]
            numbers = range(len(leaves)) if wanted is None else wanted
            found = torch.autograd.grad(J, [leaves[number] for number in numbers], allow_unused=True)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise Untraceable(f"the record cannot be differentiated: {error}") from error
    gradients = dict(zip(numbers, found, strict=True))
    return [gradients.get(number) for number in range(len(leaves))]


def _batch_norm_in_eval_mode(x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, *rest: float) -> Any:
    momentum, eps = rest
    return torch.native_batch_norm(x, weight, bias, mean, variance, False, momentum, eps)


_DIFFERENTIABLE: dict[Any, Callable[..., Any]] = dict.fromkeys(
    existing("_native_batch_norm_legit_no_training.default"), _batch_norm_in_eval_mode
)
"""Recorded operation without a formula of autograd → a function with one."""
