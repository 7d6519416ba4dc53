"""Plain functions of torch's operations, all right: what a check must never accuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.zoo.functions.case import Case, normal


def products(a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
    """Batched products."""
    return scale * torch.einsum("bij,bjk->bik", a, b)


def solution(a: Tensor, b: Tensor) -> Tensor:
    """x of (a aᵀ + 2) x = b."""
    return torch.linalg.solve(a @ a.mT + 2 * torch.eye(a.shape[-1], dtype=a.dtype), b)


def root(a: Tensor) -> Tensor:
    """The Cholesky factor of a aᵀ + 2."""
    return torch.linalg.cholesky(a @ a.mT + 2 * torch.eye(a.shape[-1], dtype=a.dtype))


def stacked(tensors: Sequence[Tensor], weights: dict[str, Tensor]) -> Tensor:
    """A sum over a list, weighted by what stands in a mapping."""
    return sum([weights["first"] * each for each in tensors]) + weights["second"]


def looked_up(table: Tensor, index: Tensor, length: int) -> Tensor:
    """Rows of a table, by index, cut to a length."""
    return table[index][:, :length].tanh()


def scattered(x: Tensor, index: Tensor) -> Tensor:
    """Rows added up in places that repeat."""
    return torch.zeros(3, x.shape[1], dtype=x.dtype).index_add(0, index, x).square()


def rectified(x: Tensor) -> Tensor:
    """max(x, 0), away from 0."""
    return x.relu()


def recomputed(x: Tensor, weight: Tensor) -> Tensor:
    """A layer under activation checkpointing."""
    return checkpoint(lambda a, b: (a @ b).tanh(), x, weight, use_reentrant=False)


def slope(x: Tensor) -> Tensor:
    """The derivative of sin x³, by torch.func."""
    return torch.func.grad(lambda each: (each**3).sin().sum())(x)


def of_two_lengths(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of two sizes, one of them 0-dim."""
    return x * y.sum(), (x.sum() * y).sum()


def constant_beside(x: Tensor) -> tuple[Tensor, Tensor]:
    """An output that depends on nothing beside one that does."""
    return x.exp(), torch.ones(2, dtype=x.dtype)


def plain() -> list[Case]:
    """All of them."""
    index = torch.tensor([2, 0, 2, 1])
    lists = ([normal(2, seed=1), normal(2, seed=2)], {"first": normal(2, seed=3), "second": normal(2, seed=4)})
    mapped = {"vmap": "passed"}
    batched = {"a": normal(2, 2, 3), "b": normal(2, 3, 2, seed=1), "scale": 0.5}
    return [
        Case("einsum by keywords", products, batched, entries=mapped),
        Case("solve", solution, (normal(3, 3), normal(3, 2, seed=1)), entries=mapped),
        Case("cholesky", root, (normal(3, 3),), entries=mapped),
        Case("lists and mappings of tensors", stacked, lists),
        Case("integer indices", looked_up, (normal(4, 5), index, 3)),
        Case("index_add", scattered, (normal(4, 2), index)),
        Case("kinks elsewhere", rectified, (normal(3, 4),)),
        Case("checkpointed", recomputed, (normal(3, 4), normal(4, 2, seed=1))),
        Case("a gradient inside", slope, (normal(5),)),
        Case("outputs of two sizes", of_two_lengths, (normal(3), normal(2, seed=1)), entries=mapped),
        Case("an output that is constant", constant_beside, (normal(3),)),
    ]
