"""Backwards that are differentiated once more: which refuse to be, and what a Function keeps without a graph."""

from __future__ import annotations

from contextlib import suppress
from numbers import Number
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from torch_gradcheck.torch_internals.autograd import backward_of

REFUSES = ("torch::autograd::Error", "torch::autograd::NotImplemented", "DelayedError")
"""The names of nodes that a gradient has where its operation cannot be differentiated twice: a backward through one
raises."""

NO_FORMULA = "derivative for "
"""How the message of the exception begins that such a node raises for an operation of torch's, and names it."""

_ONCE = once_differentiable(print).__code__
"""The code of what `once_differentiable` makes of any backward."""


def is_once_differentiable(function: type[torch.autograd.Function]) -> bool:
    """Whether the backward of a Function, or of the operator that it belongs to, is marked `once_differentiable`."""
    return getattr(backward_of(function), "__code__", None) is _ONCE


def refuses(gradient: Any) -> bool:
    """Whether a gradient raises where it is differentiated."""
    node = gradient.grad_fn if isinstance(gradient, torch.Tensor) else None
    return node is not None and node.name() in REFUSES


def operation_without_formula(error: BaseException) -> str | None:
    """The operation of torch's, such as `aten::_cdist_backward`, that has no derivative; None of another exception."""
    text = str(error)
    if not (text.startswith(NO_FORMULA) and "not implemented" in text):
        return None
    return text.removeprefix(NO_FORMULA).split(" ", 1)[0]


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
