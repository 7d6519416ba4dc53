"""The ways in which the arguments of a function are batched: dimension by dimension, together and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SHARED = 3
"""At most so many arguments are tried as the one that is not batched."""


@dataclass(frozen=True)
class Way:
    """A way to batch the arguments.

    Attributes:
        words: it in words, to follow "with".
        dims: the dimension in which each argument is stacked; None for one that all examples share.
    """

    words: str
    dims: Sequence[int | None]


def ways(names: Sequence[str], arguments: Sequence[torch.Tensor]) -> list[Way]:
    """Dimension 0; another one with an argument at a time that is not batched; one argument in this, one in that."""
    last = [tensor.dim() for tensor in arguments]
    found = [Way("the arguments batched in dimension 0", [0 for _ in arguments])]
    if len(arguments) == 1:
        found += [Way("the argument batched in its last dimension", last)] if any(last) else []
        return found + [
            Way(f"the argument batched in dimension {middle}", [middle]) for middle in _middle(last) if middle
        ]
    return [*found, *_shared(names, last), *_apart(names, last)]


def _shared(names: Sequence[str], last: Sequence[int]) -> list[Way]:
    return [
        Way(
            f"{names[shared]} not batched, and the others in their last dimension",
            [None if position == shared else dim for position, dim in enumerate(last)],
        )
        for shared in range(min(len(last), SHARED))
    ]


def _apart(names: Sequence[str], last: Sequence[int]) -> list[Way]:
    """All batched, in dimensions that are not the same; no way where each argument is a number."""
    middle, zero = _middle(last), [0 for _ in last]
    orders = [(middle, last, zero), (zero, last, middle), (last, zero, middle)]
    for order in orders:
        dims = [order[position % len(order)][position] for position in range(len(last))]
        if len(set(dims)) > 1:
            listed = ", ".join([f"{name} in {dim}" for name, dim in zip(names, dims, strict=True)])
            return [Way(f"the arguments batched in dimensions of their own ({listed})", dims)]
    return []


def _middle(last: Sequence[int]) -> list[int]:
    """A dimension between the first and the last; 0 where there is none."""
    return [dim // 2 for dim in last]
