"""Training steps of two ranks, right ones and wrong ones, for `.grad` under data parallelism."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
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


def sharded(made: Made = mlp, **options: Any) -> Any:
    """A model under FSDP2, its linear layers sharded by themselves."""
    model = made()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fully_shard(module, **options)
    return fully_shard(model, **options)


def left_by_fsdp(step: Callable[[Any, int], Batch], made: Made = mlp, **options: Any) -> Report:
    """The report on what a step has left in `.grad` of a model under FSDP2."""
    model = sharded(made, **options)
    batch = step(model, dist.get_rank())
    return check_module(model, cross_entropy, batch, gradients="grad")


def not_synchronised_by_fsdp(model: Any, rank: int) -> Batch:
    model.set_requires_gradient_sync(False)
    return right(model, rank)


def divided_by_nothing(model: Any, rank: int) -> Batch:
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
    return right(model, rank)


def clipped_by_shard(model: Any, rank: int) -> Batch:
    batch = right(model, rank)
    shards = [parameter.grad.to_local() for parameter in model.parameters()]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(shard) for shard in shards]))
    for shard in shards:
        shard.mul_(0.1 / norm)
    return batch


def clipped_whole(model: Any, rank: int) -> Batch:
    batch = right(model, rank)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    return batch


def doubled_beside(model: nn.Module, rank: int) -> Batch:
    """Rank 1 changes its own `.grad` after the reduction."""
    batch = right(model, rank)
    for parameter in model.parameters() if rank else ():
        parameter.grad *= 2
    return batch


def drifted(model: nn.Module, rank: int) -> Batch:
    with torch.no_grad():
        next(model.parameters())[0, 0] += 0.01 * rank
    return right(model, rank)


def one_ignored() -> nn.Module:
    model = mlp()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.bias"])
    return model


class Branches(nn.Module):
    """A model one layer of which only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.extra, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if x[0, 0] > 0:
            h = h + torch.tanh(self.extra(h))
        out: Tensor = self.last(h)
        return out


def unused_on_one(reduced: bool) -> Report:
    """A layer that only rank 0's batch uses: averaged by DDP, which is told to look; or by hand, where it has a .grad."""
    rank = dist.get_rank()
    x, y = batch_of(rank)
    x[0, 0] = 1.0 - 2 * rank
    model: nn.Module = Branches()
    if reduced:
        model = DistributedDataParallel(model, find_unused_parameters=True)
    cross_entropy(model(x), y).backward()
    for name, parameter in () if reduced else model.named_parameters():
        if "extra" not in name:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    return check_module(model, cross_entropy, (x, y), gradients="grad", group=dist.group.WORLD)


def accumulated(factors: tuple[float, float], shared: bool = True, size: int = 5, **options: Any) -> Report:
    """The report of a monitor on a window of two batches a rank, their losses times a factor for each rank."""
    rank = dist.get_rank()
    model = DistributedDataParallel(mlp())
    weights = options.pop("weights", None)
    sizes = options.pop("sizes", (size, size))
    with GradientMonitor(model, cross_entropy, at=0, accumulate=2, on_mismatch="record", **options) as monitor:
        for number in range(2):
            x, y = batch_of(rank, sizes[rank], number)
            with model.no_sync() if number == 0 and shared else nullcontext():
                (cross_entropy(model(x), y) * factors[rank]).backward()
            monitor.step((x, y), weight=weights[rank] if weights else None)
    if 0 in monitor.errors:
        raise monitor.errors[0]
    return monitor.reports[0]


def compressed(hook: str, wrong: bool = False) -> Report:
    """A step whose gradients a hook of DDP rounds before it sums them."""
    model = DistributedDataParallel(mlp())
    model.register_comm_hook(None, getattr(default_hooks, hook))
    batch = (summed if wrong else right)(model, dist.get_rank())
    return check_module(model, cross_entropy, batch, gradients="grad")


def sharded_step(step: Callable[[Any, int], Batch], **policy: torch.dtype) -> Report:
    """The same as `left_by_fsdp`, in mixed precision, under a monitor that sees the forward."""
    model = sharded(mp_policy=MixedPrecisionPolicy(**policy))
    with GradientMonitor(model, cross_entropy, at=0, on_mismatch="record") as monitor:
        monitor.step(step(model, dist.get_rank()))
    if 0 in monitor.errors:
        raise monitor.errors[0]
    return monitor.reports[0]
