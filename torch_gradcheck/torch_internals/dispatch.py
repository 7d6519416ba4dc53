"""Dispatch modes, function modes and functorch transforms: which are in force, and how they are ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode


def dispatch_modes_in_force() -> int:
    """How many dispatch modes are in force."""
    return torch._C._len_torch_dispatch_stack()


def pop_dispatch_modes_down_to(count: int) -> None:
    """Ends dispatch modes that an interrupt in the frames of a context manager left in force."""
    while torch._C._len_torch_dispatch_stack() > count:
        _pop_mode()


def function_modes_in_force() -> int:
    """How many function modes are in force."""
    return torch._C._len_torch_function_stack()


def pop_function_modes_down_to(count: int) -> None:
    """Ends function modes, likewise."""
    while torch._C._len_torch_function_stack() > count:
        torch.overrides._pop_mode()


def transforms_in_force() -> int:
    """How many transforms of torch.func (vmap, grad, ...) are being computed."""
    return len(torch._C._functorch.get_interpreter_stack() or ())


def pop_transforms_down_to(count: int) -> None:
    """Ends transforms that an interrupt left in force, in which no tensor can require a gradient."""
    torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(count)


@contextmanager
def vmap_or_nothing() -> Iterator[None]:
    """Let vmap fail where it would loop: our loop is faster, and does not warn. A switch of the whole process."""
    functorch: Any = torch._C._functorch
    enabled = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(enabled)


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that does not import torch's compiler, which takes longer than most checks."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
