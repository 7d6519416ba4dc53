"""Backwards that are differentiated once more: which refuse to be, and what a Function keeps without a graph."""

from __future__ import annotations

import re
from contextlib import suppress
from numbers import Number
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from torch_gradcheck.torch_internals.autograd import backward_of

WITHOUT_FORMULA = re.compile(r"(?:the )?derivative for '?(?:aten::)?(\w+)'? is not implemented")
"""What the exception says that a backward raises at an operation of torch's which has no derivative, and names it."""

_ONCE = once_differentiable(print).__code__
"""The code of what `once_differentiable` makes of any backward."""


def is_once_differentiable(function: type[torch.autograd.Function]) -> bool:
    """Whether the backward of a Function, or of the operator that it belongs to, is marked `once_differentiable`."""
    return getattr(backward_of(function), "__code__", None) is _ONCE


def operation_without_formula(error: BaseException) -> str | None:
    """The operation of torch's that has no derivative, such as `_cdist_backward`; None of another exception."""
    found = WITHOUT_FORMULA.match(str(error))
    return found and found[1]


def is_of_operation(gradient: Any, operation: str) -> bool:
    """Whether an operation of torch's has made a gradient that has a graph, as far as its node tells.

    The node of one without a derivative has no name of its own or is called after it, as CdistBackwardBackward0 is.
    """
    node = gradient.grad_fn if isinstance(gradient, torch.Tensor) else None
    if node is None:
        return False
    name = f"{operation.replace('_', '')}backward"
    return node.name().endswith("NotImplemented") or bool(node.name().lower().rstrip("0123456789") == name)


def kept_without_graph(node: Any) -> dict[str, Any]:
    """What a Function has kept for its backward and autograd takes for a constant there, by what the user calls it.

    These are saved tensors and attributes of `ctx` that are tensors without a graph, or numbers. Inputs and outputs of
    the Function have a graph, if they require a gradient.

    Args:
        node: the node of a Function, in a graph that has not been freed.
    """
    return {name: value for name, value in kept_by(node).items() if _is_constant(value)}


def kept_by(node: Any) -> dict[str, Any]:
    """All that a Function has kept for its backward, by what the user calls it; `node` is its node in the graph."""
    found: dict[str, Any] = {}
    with suppress(RuntimeError):  # freed, or written to since
        found |= {f"ctx.saved_tensors[{k}]": tensor for k, tensor in enumerate(node.saved_tensors)}
    return found | {f"ctx.{name}": value for name, value in vars(node).items()}


def _is_constant(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.requires_grad and (value.is_floating_point() or value.is_complex())
    return isinstance(value, Number) and not isinstance(value, bool)
