"""Collectives of torch.distributed as a dispatch mode sees them: which, over how many ranks, in whose backward."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch

from torch_gradcheck.torch_internals.autograd import function_of

COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "symm_mem")
"""The namespaces of operations that talk to other ranks."""

WAITS = ("wait_tensor", "wait_tensors")
"""Those among them that only wait for what has begun."""


def collective_of(operation: Any) -> str | None:
    """The name of a collective, such as `all_reduce`; None of any other operation."""
    packet = getattr(operation, "overloadpacket", operation)
    namespace, _, name = str(getattr(packet, "_qualified_op_name", "")).partition("::")
    if namespace not in COLLECTIVES or name in WAITS:
        return None
    return name.rstrip("_")


def ranks_of(arguments: Iterable[Any]) -> int:
    """Over how many ranks a collective goes that is called with these arguments; 2 where that cannot be told."""
    sizes = [size for each in arguments if (size := _size_of(each)) is not None]
    return min(sizes, default=2)


def _size_of(argument: Any) -> int | None:
    """The size of a group, given as an object or by its name; None of anything else."""
    try:
        if isinstance(argument, torch.ScriptObject):
            return int(torch.distributed.ProcessGroup.unbox(argument).size())
        if isinstance(argument, str):
            resolve: Any = torch._C._distributed_c10d._resolve_process_group
            return int(resolve(argument).size())
    except (RuntimeError, AttributeError, ValueError, KeyError):
        return None
    return None


def running_backward() -> str | None:
    """The name of the innermost Function whose backward is running; None where none is."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        first = frame.f_code.co_varnames[: min(frame.f_code.co_argcount, 1)]
        function = function_of(frame.f_locals.get(first[0])) if first else None
        if isinstance(function, type):
            return function.__name__
        frame = frame.f_back
    return None
