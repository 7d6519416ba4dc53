"""Models that two ranks shard, in each of several ways, beside the plain one that they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Doubled(torch.autograd.Function):
    """x, with twice its gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = Doubled.apply(x)
        return result


class Block(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.up = nn.Linear(3, 6)
        self.middle = Doubling() if wrong else nn.Tanh()
        self.down = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(self.middle(self.up(x)))
        return result


def plain(wrong: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), Block(wrong), nn.LayerNorm(3), nn.Linear(3, 2))


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)


def ddp(model: nn.Module, **options: Any) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, **options)


def fsdp(model: nn.Module, **options: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[1], **options)  # type: ignore[index]
    return fully_shard(model, **options)


def fsdp_mixed(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return fsdp(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))


def fsdp_kept(model: nn.Module) -> nn.Module:
    return fsdp(model, reshard_after_forward=False)


def fsdp_offloaded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return fsdp(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def tensor_parallel(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"1.up": ColwiseParallel(), "1.down": RowwiseParallel()}
    return parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    each.__name__: each for each in (ddp, fsdp, fsdp_mixed, fsdp_kept, fsdp_offloaded, tensor_parallel)
}
