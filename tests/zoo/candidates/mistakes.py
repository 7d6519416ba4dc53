"""Mistakes that the backward or the forward of any kernel can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor | None]


def with_gradient(backward: Callable[..., Any], position: int, change: Change) -> Callable[..., Any]:
    """The backward, with one of its gradients changed."""

    def changed(ctx: Any, *upstream: Any) -> Any:
        gradients = backward(ctx, *upstream)
        gradients = list(gradients) if isinstance(gradients, tuple) else [gradients]
        gradients[position] = change(gradients[position])
        return tuple(gradients)

    return changed


def with_output(forward: Callable[..., Any], change: Change, position: int = 0) -> Callable[..., Any]:
    """The forward, with one of its outputs changed; what it saves for the backward is as right as before."""

    def changed(ctx: Any, *args: Any) -> Any:
        outputs = forward(ctx, *args)
        if not isinstance(outputs, tuple):
            return change(outputs)
        return tuple(change(each) if place == position else each for place, each in enumerate(outputs))

    return _named_like(changed, forward)


def with_swapped(backward: Callable[..., Any], first: int, second: int) -> Callable[..., Any]:
    """The backward, with two of its gradients in each other's place."""

    def swapped(ctx: Any, *upstream: Any) -> Any:
        gradients = list(backward(ctx, *upstream))
        gradients[first], gradients[second] = gradients[second], gradients[first]
        return tuple(gradients)

    return swapped


def times(factor: float) -> Change:
    """All of it by a factor, before it is rounded once more."""
    return lambda tensor: (factor * tensor.float()).to(tensor.dtype)


def one_percent(tensor: Tensor) -> Tensor:
    """1 % too large."""
    return (1.01 * tensor.float()).to(tensor.dtype)


def negated(tensor: Tensor) -> Tensor:
    """Of the other sign."""
    return -tensor


def dropped(tensor: Tensor) -> None:
    """Not returned."""
    return


def one_entry(tensor: Tensor) -> Tensor:
    """Its largest entry is doubled."""
    spoiled = tensor.clone().reshape(-1)
    spoiled[spoiled.abs().argmax()] *= 2
    return spoiled.view_as(tensor)


def last_row_missing(tensor: Tensor) -> Tensor:
    """0 in the last place of its first axis."""
    spoiled = tensor.clone()
    spoiled[-1] = 0
    return spoiled


def last_column_missing(tensor: Tensor) -> Tensor:
    """0 in the last place of its last axis."""
    spoiled = tensor.clone()
    spoiled[..., -1] = 0
    return spoiled


def one_column_shifted(tensor: Tensor) -> Tensor:
    """The numbers of the first column are in the second one too."""
    spoiled = tensor.clone()
    spoiled[..., 1] = spoiled[..., 0]
    return spoiled


def nan_in_tail(tensor: Tensor) -> Tensor:
    """NaN in its last entry, as of 0 / 0 in a masked tail."""
    spoiled = tensor.clone().reshape(-1)
    spoiled[-1] = torch.nan
    return spoiled.view_as(tensor)


def tail_twice(block: int) -> Change:
    """What is behind the last whole block of the flat tensor is written twice, and added up."""

    def spoiled(tensor: Tensor) -> Tensor:
        flat = tensor.clone().reshape(-1)
        flat[len(flat) - len(flat) % block :] *= 2
        return flat.view_as(tensor)

    return spoiled


def tail_missing(block: int) -> Change:
    """What is behind the last whole block of the flat tensor is left at 0."""

    def spoiled(tensor: Tensor) -> Tensor:
        flat = tensor.clone().reshape(-1)
        flat[len(flat) - len(flat) % block :] = 0
        return flat.view_as(tensor)

    return spoiled


def _named_like(function: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """The function under another's signature, from which rows get their names."""
    function.__wrapped__ = other  # type: ignore[attr-defined]
    return function
