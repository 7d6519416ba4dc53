"""Refuses to evaluate a J that talks to other ranks: they are elsewhere, and it would wait for them without end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.torch_internals.autograd import in_backward
from torch_gradcheck.torch_internals.collectives import collective_of, ranks_of, running_backward
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.modules import named_modules, running_module
from torch_gradcheck.torch_internals.sharded import is_sharded_type, process_groups_exist


class CollectiveWatch(DispatchMode):
    """Raises InvalidRequestError at a collective over several ranks, and at an operation on a DTensor.

    Args:
        model: the model, whose module is named.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = collective_of(func)
        if name is not None and ranks_of([*args, *(kwargs or {}).values()]) > 1:
            raise InvalidRequestError(
                f"{self._place()} calls {name} of torch.distributed, which talks to other ranks: in a check each "
                "evaluates J alone, with parameters of full size. Check what it computes between such calls, or the "
                "same model in one process."
            )
        if any(map(is_sharded_type, types)):
            raise InvalidRequestError(
                f"{self._place()} computes with a DTensor that it makes itself: in a check each rank evaluates J "
                "alone, with plain tensors of full size. Check the same model without it, or in one process."
            )
        return func(*args, **(kwargs or {}))

    def _place(self) -> str:
        """Words on the code that is running: the forward of a module, the backward of a Function, or the loss."""
        function = running_backward() if in_backward() else None
        if function is not None:
            return f"the backward of {function}"
        module = running_module()
        if module is None:
            return "a backward" if in_backward() else "the loss"
        names = [name for name, each in named_modules(self._model) if each is module]
        where = f"{names[-1]!r} ({type(module).__name__})" if names and names[-1] else f"a {type(module).__name__}"
        return f"the forward of {where}"


def collective_watch(model: nn.Module) -> CollectiveWatch | None:
    """The watch for an evaluation of J; None where no evaluation can talk to others, or autograd is off.

    What a first evaluation with autograd, and the backward of it, do not do, later ones without it do not either.
    """
    return CollectiveWatch(model) if process_groups_exist() and torch.is_grad_enabled() else None


def refuse_synchronised(model: nn.Module) -> None:
    """Raises InvalidRequestError where a batch norm takes its statistics from the batches of several ranks."""
    for name, module in named_modules(model) if process_groups_exist() else ():
        group: Any = getattr(module, "process_group", None)
        takes_them = isinstance(module, nn.SyncBatchNorm) and (module.training or not module.track_running_stats)
        if takes_them and torch.distributed.get_world_size(group) > 1:
            raise InvalidRequestError(
                f"{name!r} (SyncBatchNorm) takes the statistics of the batches of all ranks, and in a check each rank "
                'evaluates J alone: check it with mode="eval", or with a BatchNorm in its place.'
            )
