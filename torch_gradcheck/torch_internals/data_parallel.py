"""Data parallelism by DistributedDataParallel: its ranks, the model inside, and the precision that it reduces in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from torch_gradcheck.torch_internals.modules import PARALLEL, named_parameters, uncompiled
from torch_gradcheck.torch_internals.sharded import (
    data_parallel_groups,
    mixed_precision,
    process_groups_exist,
    unreduced,
)


def data_parallel_group(model: nn.Module) -> Any:
    """The process group of the ranks that train one model, each on its own batches; None where there is no other one.

    That is the group of DistributedDataParallel, or of the mesh that `fully_shard` was given: where the mesh has
    several dimensions, all processes, if it is made of them.

    Args:
        model: of the caller's, as it is trained.
    """
    if not process_groups_exist():
        return None
    wrapper = uncompiled(model)
    if isinstance(wrapper, nn.parallel.DistributedDataParallel):
        groups = [wrapper.process_group]
    else:
        groups = data_parallel_groups(wrapper)
    sizes = [torch.distributed.get_world_size(group) for group in groups]
    if len(groups) > 1:
        return torch.distributed.group.WORLD if math.prod(sizes) == torch.distributed.get_world_size() else None
    return groups[0] if sizes and sizes[0] > 1 else None


def without_parallel(model: nn.Module) -> nn.Module:
    """The model itself, which no data parallelism is wrapped around; a compiled one as it is otherwise."""
    inside = uncompiled(model)
    return without_parallel(inside.module) if isinstance(inside, PARALLEL) else model


def reduced_in(model: nn.Module) -> torch.dtype | None:
    """The dtype that gradients are summed over the ranks in; None: their own.

    A hook of DDP compresses them, or the mixed precision of FSDP2 reduces them in another one.
    """
    policies = [each.gradients or each.parameters for each in mixed_precision(model).values()]
    if any(policies):
        return _coarsest(policies)
    names = [name.removesuffix("_wrapper_hook") for name in comm_hooks(model)]
    found = [dtype for name in names for start, dtype in _COMPRESSED.items() if name.startswith(start)]
    return found[0] if found else None


def computed_in(model: nn.Module) -> torch.dtype | None:
    """The coarsest dtype that FSDP2 casts parameters to for the forward; None where it casts none."""
    return _coarsest([each.parameters for each in mixed_precision(model).values()])


def _coarsest(dtypes: Iterable[torch.dtype | None]) -> torch.dtype | None:
    return max(filter(None, dtypes), key=lambda dtype: torch.finfo(dtype).eps, default=None)


def waiting_for_reduction(model: nn.Module) -> list[str]:
    """The names of the parameters of FSDP2 whose gradient waits on each rank: no backward was to reduce it."""
    waiting = {id(each) for each in unreduced(model)}
    return [name for name, parameter in named_parameters(model) if id(parameter) in waiting]


def comm_hooks(model: nn.Module) -> list[str]:
    """The names of the hooks of DDP's that gradients go through between the ranks."""
    hooks: list[tuple[Any, Any]] = getattr(uncompiled(model), "_comm_hooks", [])
    return [getattr(hook, "__name__", type(hook).__name__) for hook, _ in hooks]


_COMPRESSED = {"fp16_compress": torch.float16, "bf16_compress": torch.bfloat16}
