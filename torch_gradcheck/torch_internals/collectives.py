"""Collectives of torch.distributed as operations that a dispatch mode sees: which they are, and over how many ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

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
