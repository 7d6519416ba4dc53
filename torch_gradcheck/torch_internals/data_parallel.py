"""Data parallelism by DistributedDataParallel: its ranks, the model inside, and the precision that it reduces in."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from torch_gradcheck.torch_internals.modules import PARALLEL, uncompiled


def data_parallel_group(model: nn.Module) -> dist.ProcessGroup | None:
    """The ranks that train one model, each on batches of its own; None where there is no other one.

    Args:
        model: of the caller's, as it is trained.
    """
    wrapper = uncompiled(model)
    if not isinstance(wrapper, nn.parallel.DistributedDataParallel):
        return None
    group: dist.ProcessGroup = wrapper.process_group
    return group if dist.get_world_size(group) > 1 else None


def without_parallel(model: nn.Module) -> nn.Module:
    """The model itself, which no data parallelism is wrapped around; a compiled one as it is otherwise."""
    inside = uncompiled(model)
    return without_parallel(inside.module) if isinstance(inside, PARALLEL) else model


def reduced_in(model: nn.Module) -> torch.dtype | None:
    """The dtype that a hook of DDP compresses gradients to before they are summed over the ranks; None without."""
    names = [name.removesuffix("_wrapper_hook") for name in comm_hooks(model)]
    found = [dtype for name in names for start, dtype in _COMPRESSED.items() if name.startswith(start)]
    return found[0] if found else None


def comm_hooks(model: nn.Module) -> list[str]:
    """The names of the hooks of DDP's that gradients go through between the ranks."""
    hooks: list[tuple[Any, Any]] = getattr(uncompiled(model), "_comm_hooks", [])
    return [getattr(hook, "__name__", type(hook).__name__) for hook, _ in hooks]


_COMPRESSED = {"fp16_compress": torch.float16, "bf16_compress": torch.bfloat16}
