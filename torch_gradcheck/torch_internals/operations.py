"""What an operation's schema says: which arguments it writes to, whether it returns a view, which overloads exist."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten


def overloads(*names: str) -> frozenset[OpOverload]:
    """All overloads of these operations that exist in this version of torch."""
    packets = [getattr(aten, name) for name in names if hasattr(aten, name)]
    return frozenset(getattr(packet, overload) for packet in packets for overload in packet.overloads())


def flatten(result: Any) -> list[Tensor]:
    """The tensors an operation returned, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [tensor for item in result for tensor in flatten(item)]
    return []


CASTS = {
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten.lift_fresh.default,
    aten.type_as.default,
    aten.view_as_complex.default,
}
"""Ops that may return what they are given, but are no views."""


@functools.cache
def is_view(func: Any) -> bool:
    """Whether what an op returns shares memory with what it is given, and it writes to neither."""
    schema = getattr(func, "_schema", None)
    aliases = [argument.alias_info for argument in schema.arguments] if schema else []
    return func not in CASTS and any(aliases) and not any(alias and alias.is_write for alias in aliases)


@functools.cache
def written_arguments(func: Any) -> frozenset[int | str]:
    """Positions and names of the arguments an op writes to: those must stay the objects they are."""
    written: set[int | str] = set()
    schema = getattr(func, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written |= {position, argument.name}
    return frozenset(written)
