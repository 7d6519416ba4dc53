"""Wrappers and hooks by which torch spreads a model over ranks, and models that others have spread."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torch_gradcheck.torch_internals.missing import internal
from torch_gradcheck.torch_internals.modules import PARALLEL


def is_ddp(module: nn.Module) -> bool:
    """Whether a module is a DistributedDataParallel, whose forward and backward talk to other ranks."""
    return isinstance(module, PARALLEL[0])


def has_own_forward(ddp: nn.Module) -> bool:
    """Whether the class of a DistributedDataParallel has another forward than torch's."""
    return type(ddp).forward is not PARALLEL[0].forward


def passed_on(ddp: nn.Module) -> Callable[..., Any]:
    """A forward for a DistributedDataParallel that calls the module inside, on the device that it is on."""
    inside: Any = ddp.module
    devices = getattr(ddp, "device_ids", None)
    if not devices:
        return inside  # type: ignore[no-any-return]
    device = torch.device(str(getattr(ddp, "device_type", "cuda")), devices[0])
    moved = internal(torch.distributed.utils, "_to_kwargs", "move a batch to the device of a model")

    def forward(*args: Any, **kwargs: Any) -> Any:
        there, named = moved(args, kwargs, device, False)
        return inside(*there[0], **named[0])

    return forward


class _Done:
    """What has nothing to wait for."""

    def wait(self) -> None:
        pass


def _nothing(*_: Any, **__: Any) -> _Done:
    return _Done()


def sharding_methods(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """The methods of a module by which FSDP2 gathers and shards it, such as `unshard`, and what does nothing instead.

    Empty for a module that `fully_shard` was not applied to.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is None or not isinstance(module, kind):
        return {}
    return {name: _nothing for name, held in vars(kind).items() if callable(held) and not name.startswith("_")}


def full_precision_of(parameter: torch.Tensor) -> torch.Tensor | None:
    """A copy of a parameter in its own precision, while a DistributedDataParallel has it hold a lower one; else None.

    With `mixed_precision=` it does so between forward and backward.
    """
    full, low = getattr(parameter, "_fp_param", None), getattr(parameter, "_mp_param", None)
    if not isinstance(full, torch.Tensor) or not isinstance(low, torch.Tensor) or parameter.dtype is full.dtype:
        return None
    copy = full.detach().clone().requires_grad_(parameter.requires_grad)
    copy.grad = parameter.grad if parameter.grad is None or parameter.grad.dtype is copy.dtype else None
    return copy


def is_of_sharding(hook: Any) -> bool:
    """Whether a hook of a module's forward is one by which torch gathers, redistributes or copies shards."""
    function = _innermost(hook)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module) and is_ddp(owner):
        return True
    made_in = _made_in(function)
    return made_in.startswith("torch.distributed.") and made_in not in COMPUTING


COMPUTING = ("torch.distributed._composable.checkpoint_activation",)
"""Files of torch.distributed whose hooks have to do with how a module computes, and not with shards."""


def functions_behind(hook: Any) -> list[Callable[..., Any]]:
    """The caller's functions that a hook of torch's runs, such as the `input_fn` that `distribute_module` was given."""
    cells = getattr(_innermost(hook), "__closure__", None) or ()
    found = [_innermost(cell.cell_contents) for cell in cells]
    return [each for each in found if callable(each) and _made_in(each) and not _made_in(each).startswith("torch.")]


def _innermost(function: Any) -> Any:
    """The function inside of partials."""
    while hasattr(function, "func"):
        function = function.func
    return function


def _made_in(function: Any) -> str:
    """The name of the file's module that a function or the class of a callable was written in."""
    return str(getattr(function, "__module__", None) or "")


def is_fsdp1(module: nn.Module) -> bool:
    """Whether a module is wrapped in `FullyShardedDataParallel`."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    return kind is not None and isinstance(module, kind)


def is_partitioned_elsewhere(parameter: torch.Tensor) -> bool:
    """Whether DeepSpeed (ZeRO-3) has taken the numbers of a parameter away and left an empty one."""
    return hasattr(parameter, "ds_id") and parameter.numel() == 0
