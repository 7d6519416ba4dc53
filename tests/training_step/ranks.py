"""Training steps of two ranks, right ones and wrong ones, for `.grad` under data parallelism."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_gradcheck import GradientMonitor, Report, check_module

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


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def dropout_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 3))


Made = Callable[[], nn.Module]


class Loop:
    """A training loop of two ranks under a monitor.

    Args:
        made: makes the model.
        steps: how many.
        accumulate: batches of one step.
        spoil: what is done to the model and the rank after each backward.
        seed: of the data.
        options: of the monitor.
    """

    def __init__(
        self,
        made: Made = mlp,
        steps: int = 3,
        accumulate: int = 1,
        autocast: bool = False,
        monitored: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.made, self.steps, self.accumulate, self.autocast, self.seed = made, steps, accumulate, autocast, seed
        self.monitored, self.options = monitored, options

    def run(self) -> tuple[dict[int, Report], str, list[Tensor]]:
        rank = dist.get_rank()
        torch.manual_seed(100 + rank)
        model = DistributedDataParallel(self.made())
        torch.manual_seed(100 + rank)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        scheduled: Any = range(self.steps) if self.monitored else ()
        options = {"at": scheduled, "on_mismatch": "record", "accumulate": self.accumulate, **self.options}
        with GradientMonitor(model, cross_entropy, **options) as monitor:
            for number in range(self.steps * self.accumulate):
                last = (number + 1) % self.accumulate == 0
                batch = batch_of(rank, size=4 + rank, number=self.seed + number)
                with nullcontext() if last else model.no_sync(), torch.autocast("cpu", enabled=self.autocast):
                    loss = cross_entropy(model(batch[0]), batch[1]) / self.accumulate
                with nullcontext() if last else model.no_sync():
                    loss.backward()
                monitor.step(batch)
                if last:
                    optimizer.step()
                    optimizer.zero_grad()
        return monitor.reports, monitor.summary, [each.detach().clone() for each in model.state_dict().values()]
