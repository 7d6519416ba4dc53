"""Follows a forward pass module by module: the name of the running module, and the output of each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.torch_internals.modules import named_modules
from torch_gradcheck.torch_internals.transforms import numbers_in, outside_transforms

OnOutput = Callable[[str, list[torch.Tensor]], None]


class ModuleStack:
    """The stack of modules being called, by qualified name; the model itself is ""."""

    def __init__(self) -> None:
        self._stack: list[str] = []

    def current_module(self) -> str:
        """The innermost module being called; "" in the model's own forward and outside of it."""
        return self._stack[-1] if self._stack else ""

    def is_running(self) -> bool:
        """Whether a module is being called, so that "" is the model's own forward."""
        return bool(self._stack)

    def enter(self, name: str) -> None:
        """A call of module `name` begins."""
        self._stack.append(name)

    def leave(self, name: str) -> None:
        """The call of module `name` ends."""
        if name in self._stack:  # it is not where a hook of the caller's raised before `enter`
            while self._stack.pop() != name:  # a forward that raised left its children on the stack
                pass


def forward_hooks(
    model: nn.Module, on_output: OnOutput | None = None, stack: ModuleStack | None = None
) -> AbstractContextManager[ModuleStack]:
    """Follows every call of a module of `model` inside the block, which gets the stack of running modules.

    Args:
        model: its modules have forward hooks inside the block.
        on_output: called with a module's name and the tensors of its output, in the order the calls end, so that an
            inner module comes before the one that contains it. Inside of vmap, grad or another transform of torch.func
            these are the ordinary tensors that it works on, with the dimensions that vmap hides in front.
        stack: is told of every call; None for a new one.
    """
    return _Followed(model, on_output, stack or ModuleStack())


class _Followed:
    """The block of `forward_hooks`. A class and not a generator, which writes to an exception that passes."""

    def __init__(self, model: nn.Module, on_output: OnOutput | None, stack: ModuleStack) -> None:
        self._model, self._on_output, self._stack = model, on_output, stack
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleStack:
        try:
            for name, module in named_modules(self._model):
                before, after = self._hooks_for(name)
                self._handles.append(nn.Module.register_forward_pre_hook(module, before))
                self._handles.append(nn.Module.register_forward_hook(module, after, always_call=True))
        except BaseException:
            self.__exit__()
            raise
        return self._stack

    def __exit__(self, *exception: object) -> None:
        while self._handles:
            self._handles.pop(0).remove()

    def _hooks_for(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(*_: Any) -> None:
            self._stack.enter(name)

        def after(*arguments: Any) -> None:
            self._stack.leave(name)
            if self._on_output is not None:
                with outside_transforms():
                    self._on_output(name, [numbers_in(tensor) for _, tensor in tensors_in(arguments[-1])])

        return before, after
