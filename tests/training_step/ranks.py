"""Training steps of two ranks, right ones and wrong ones, for `.grad` under data parallelism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_gradcheck import Report, check_module

cross_entropy = nn.CrossEntropyLoss()
Batch = tuple[Tensor, Tensor]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch_of(rank: int, size: int = 5, number: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(17 * number + rank + 1)
    return torch.randn(size, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator)


def left_by(step: Callable[[nn.Module, int], Batch], made: Callable[[], nn.Module] = mlp) -> Report:
    """The report on what a step has left in `.grad` of a model under DDP."""
    model = DistributedDataParallel(made())
    batch = step(model, dist.get_rank())
    return check_module(model, cross_entropy, batch, gradients="grad")


def right(model: nn.Module, rank: int) -> Batch:
    x, y = batch_of(rank)
    cross_entropy(model(x), y).backward()
    return x, y


def summed(model: nn.Module, rank: int) -> Batch:
    x, y = batch_of(rank)
    (cross_entropy(model(x), y) * dist.get_world_size()).backward()
    return x, y


def divided_twice(model: nn.Module, rank: int) -> Batch:
    x, y = batch_of(rank)
    (cross_entropy(model(x), y) / dist.get_world_size()).backward()
    return x, y


def skipped(model: nn.Module, rank: int) -> Batch:
    x, y = batch_of(rank)
    (cross_entropy(model(x), y) * (rank != 1)).backward()
    return x, y


def counted_twice(model: nn.Module, rank: int) -> Batch:
    x, y = batch_of(rank)
    (cross_entropy(model(x), y) * (1 + (rank == 1))).backward()
    return x, y


def not_synchronised(model: Any, rank: int) -> Batch:
    x, y = batch_of(rank)
    with model.no_sync():
        cross_entropy(model(x), y).backward()
    return x, y


def by_size(model: nn.Module, rank: int) -> Batch:
    x, y = batch_of(rank, size=3 + 4 * rank)
    (cross_entropy(model(x), y) * len(x) * dist.get_world_size() / 10).backward()
    return x, y
