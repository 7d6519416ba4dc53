"""Training steps of two ranks, right ones and wrong ones, for `.grad` under data parallelism."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from torch_gradcheck import GradcheckError, GradientMismatchError, GradientMonitor, Report, check_closure, check_module

cross_entropy = nn.CrossEntropyLoss()
Batch = tuple[Tensor, Tensor]
OnMismatch = Literal["raise", "warn", "record"]


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


def sharded(made: Made = mlp, **options: Any) -> Any:
    """A model under FSDP2, its linear layers sharded by themselves."""
    model = made()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fully_shard(module, **options)
    return fully_shard(model, **options)


STEPS = 3


def whole_of(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Every parameter and its `.grad`, gathered."""
    pairs = [(each.detach().clone(), each.grad) for each in model.parameters()]
    return [tuple(x.full_tensor() if isinstance(x, DTensor) else x for x in pair) for pair in pairs]  # type: ignore[misc]


def trained(
    made: Made,
    accumulate: int = 1,
    autocast: bool = False,
    fully: bool = False,
    checked: bool = True,
    seed: int = 0,
) -> tuple[list[Report], list[Tensor]]:
    """The reports of a monitor on each of three right steps of AdamW, and what the model holds after them.

    Args:
        made: makes the model.
        accumulate: the batches of one step; the ranks' are of different sizes.
        autocast: to bfloat16.
        fully: under FSDP2, else DDP.
        checked: whether the monitor has anything to do.
        seed: of data and random numbers.
    """
    rank = dist.get_rank()
    model: Any = sharded(made) if fully else DistributedDataParallel(made())
    torch.manual_seed(100 * seed + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    at = range(STEPS) if checked else ()
    wanted: list[float] = []
    updates: list[float] = []
    with GradientMonitor(model, cross_entropy, at=at, on_mismatch="record", accumulate=accumulate) as monitor:
        for number in range(STEPS * accumulate):
            last = (number + 1) % accumulate == 0
            x, y = batch_of(rank, size=4 + rank, number=100 * seed + number)
            if fully:
                model.set_requires_gradient_sync(last)
            with nullcontext() if last or fully else model.no_sync():
                with torch.autocast("cpu", enabled=autocast):
                    loss = cross_entropy(model(x), y) / accumulate
                loss.backward()
            monitor.step((x, y))
            if last:
                before = whole_of(model)
                wanted += [float(grad.norm()) for _, grad in before]
                optimizer.step()
                pairs = zip(before, whole_of(model), strict=True)
                updates += [float((held - was).norm()) for (was, _), (held, _) in pairs]
                optimizer.zero_grad()
    assert not monitor.errors, monitor.errors
    if checked:
        told = monitor.history
        assert np.allclose([row.grad_norm for row in told], wanted, rtol=1e-5), (told, wanted)
        # Under FSDP2 the update of the last step would take all ranks in close(); else the first one measures it.
        known = len(told) * (STEPS - 1) // STEPS if fully else len(told) * (rank == 0)
        assert np.allclose([row.update_norm for row in told[:known]], updates[:known], rtol=1e-5), (told, updates)
        assert {row.update_norm for row in told[known:]} <= {None}
    held = [each.full_tensor() if isinstance(each, DTensor) else each for each in model.state_dict().values()]
    return list(monitor.reports.values()), [each.clone() for each in held]


def not_zeroed_on_one() -> Report:
    """The second step of a loop in which rank 1 forgets to zero its gradients."""
    rank = dist.get_rank()
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientMonitor(model, cross_entropy, at=1, on_mismatch="record") as monitor:
        for number in range(2):
            x, y = batch_of(rank, number=number)
            cross_entropy(model(x), y).backward()
            monitor.step((x, y))
            optimizer.step()
            if rank == 0:
                optimizer.zero_grad()
    return monitor.reports[1]


def stopped_by(on_mismatch: OnMismatch) -> str:
    """What step() of a wrong step does: the exception it raises, or the warning."""
    model = DistributedDataParallel(mlp())
    with GradientMonitor(model, cross_entropy, at=0, on_mismatch=on_mismatch) as monitor:
        batch = skipped(model, dist.get_rank())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                monitor.step(batch)
            except GradientMismatchError:
                return "raised"
    return " ".join(str(each.category.__name__) for each in caught) or "recorded"


def left_by_fsdp(step: Callable[[Any, int], Batch], made: Made = mlp, **options: Any) -> Report:
    """The report on what a step has left in `.grad` of a model under FSDP2."""
    model = sharded(made, **options)
    batch = step(model, dist.get_rank())
    return check_module(model, cross_entropy, batch, gradients="grad")


def not_synchronised_by_fsdp(model: Any, rank: int) -> Batch:
    model.set_requires_gradient_sync(False)
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


def one_bit_apart(shared: bool) -> Report:
    """The report on replicas that are one last bit apart: on a step's `.grad`, or on a shared check; nothing moves."""
    model = DistributedDataParallel(mlp())
    weight = next(model.parameters())
    with torch.no_grad():
        weight[0, 0] = weight[0, 0].nextafter(torch.tensor(9.0)) if dist.get_rank() else weight[0, 0]
    held = weight.detach().clone()
    if shared:
        report = check_module(model, cross_entropy, batch_of(0), group=dist.group.WORLD)
    else:
        report = monitored(model, right)
    assert torch.equal(weight, held)
    return report


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
    """A layer that only rank 0's batch uses: averaged by DDP, or left out where .grad are averaged by hand."""
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


def accumulated(factors: tuple[float, float], shared: bool = True) -> Report:
    """The report of a monitor on a window of two batches a rank, their losses times a factor for each rank."""
    rank = dist.get_rank()
    model = DistributedDataParallel(mlp())
    with GradientMonitor(model, cross_entropy, at=0, accumulate=2, on_mismatch="record") as monitor:
        for number in range(2):
            x, y = batch_of(rank, number=number)
            with model.no_sync() if number == 0 and shared else nullcontext():
                (cross_entropy(model(x), y) * factors[rank]).backward()
            monitor.step((x, y))
    return _reported(monitor)


def compressed(hook: str, wrong: bool = False) -> Report:
    """A step whose gradients a hook of DDP rounds before it sums them."""
    model = DistributedDataParallel(mlp())
    model.register_comm_hook(None, getattr(default_hooks, hook))
    batch = (summed if wrong else right)(model, dist.get_rank())
    return check_module(model, cross_entropy, batch, gradients="grad")


def in_mixed_precision(
    step: Callable[[Any, int], Batch], param_dtype: torch.dtype | None, reduce_dtype: torch.dtype | None
) -> Report:
    """The report of a monitor on a step in mixed precision, whose forward it sees."""
    model = sharded(mp_policy=MixedPrecisionPolicy(param_dtype, reduce_dtype))
    return monitored(model, step)


def clipped(step: Callable[[Any, int], Batch]) -> Report:
    """The report of a monitor that knows of a limit."""
    return monitored(sharded(), step, clip_norm=0.1)


BY_FSDP2: set[Callable[..., Report]] = {left_by_fsdp, in_mixed_precision, clipped}
"""Those that run a step of a model that FSDP2 shards."""


def monitored(model: nn.Module, step: Callable[[Any, int], Batch], **options: Any) -> Report:
    """The report of a monitor on one step."""
    with GradientMonitor(model, cross_entropy, at=0, on_mismatch="record", **options) as monitor:
        monitor.step(step(model, dist.get_rank()))
    return _reported(monitor)


def weighted(by_size: bool) -> Report:
    """A step of ranks with batches of 3 and 7, weights declared: each counts by its weight, or both the same."""
    rank = dist.get_rank()
    model = DistributedDataParallel(mlp())
    x, y = batch_of(rank, 3 + 4 * rank)
    with GradientMonitor(model, cross_entropy, at=0, on_mismatch="record") as monitor:
        (cross_entropy(model(x), y) * (len(x) * 2 / 10 if by_size else 1)).backward()
        monitor.step((x, y), weight=len(x))
    return _reported(monitor)


def _reported(monitor: GradientMonitor) -> Report:
    if 0 in monitor.errors:
        raise monitor.errors[0]
    return monitor.reports[0]


def error_of(function: Callable[..., Any], *arguments: Any) -> str:
    """The text of the exception that a function ends in."""
    try:
        function(*arguments)
    except GradcheckError as error:
        return str(error)
    return "no error"


def refused(given: str) -> None:
    """Checks of `.grad` whose batches cannot be exchanged."""
    model = DistributedDataParallel(mlp())
    x, y = right(model, dist.get_rank())
    if given == "closure":
        check_closure(model, lambda: cross_entropy(model(x), y), gradients="grad")
    elif given == "unpicklable":
        check_module(model, lambda out, target, _: cross_entropy(out, target), (x, y, lambda: 0), gradients="grad")
    else:
        with GradientMonitor(model, cross_entropy, at=0) as monitor:
            monitor.step((x, y), weight=None if dist.get_rank() else 1.0)


def shared_check(same: bool) -> Report:
    """The check of a model under DDP that two ranks share, with different batches or the same."""
    model = DistributedDataParallel(mlp())
    return check_module(model, cross_entropy, batch_of(0 if same else dist.get_rank()), group=dist.group.WORLD)


def mean_loss() -> float:
    """The mean of the losses of two ranks."""
    model = mlp().double()
    losses = [cross_entropy(model(x.double()), y) for x, y in map(batch_of, range(2))]
    return float(sum(loss.item() for loss in losses)) / 2
