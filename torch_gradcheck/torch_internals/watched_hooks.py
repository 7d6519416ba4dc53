"""The hooks that a backward runs, each with what it was given and what it has returned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class HookKind(Enum):
    """What a hook is registered on, by what it is called with in words."""

    TENSOR = "the gradient"
    MODULE = "the module, grad_input and grad_output"
    MODULE_BEFORE = "the module and grad_output"


@dataclass
class HookRun:
    """A run of a hook.

    Attributes:
        hook: the hook.
        kind: what it is registered on.
        owner: the tensor or the module that it is registered on.
        place: what `where` said when it was registered; None for one that was there before.
        given: what it was given.
        returned: what it has returned.
        is_finished: it has returned.
    """

    hook: Callable[..., Any]
    kind: HookKind
    owner: Any
    place: Any
    given: tuple[Any, ...]
    returned: Any = None
    is_finished: bool = False


class HookWatch(TorchFunctionMode):
    """Notes the runs of hooks on tensors and of backward hooks of modules inside of the block.

    Args:
        tensors: tensors that may have hooks already.
        modules: modules that may have.
        where: asked when a hook is registered.
        inside: a mode in which hooks run.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        modules: Iterable[nn.Module],
        where: Callable[[], Any],
        inside: AbstractContextManager[Any],
    ) -> None:
        super().__init__()
        self._inside = inside
        self._tensors, self._modules, self._where = list(tensors), list(modules), where
        self._replaced: list[tuple[Any, Any, Any]] = []
        self.last: HookRun | None = None
        self.last_to_change: HookRun | None = None

    def __enter__(self) -> HookWatch:
        for tensor in self._tensors:
            self._replace(tensor._backward_hooks or {}, HookKind.TENSOR, tensor)
        for module in self._modules:
            self._replace(module._backward_hooks, HookKind.MODULE, module)
            self._replace(module._backward_pre_hooks, HookKind.MODULE_BEFORE, module)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        while self._replaced:
            hooks, key, hook = self._replaced.pop()
            hooks[key] = hook

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.register_hook and len(args) == 2:
            args = args[0], self._watched(args[1], HookKind.TENSOR, args[0], self._where())
        return func(*args, **(kwargs or {}))

    def _replace(self, hooks: Any, kind: HookKind, owner: Any) -> None:
        for key, hook in list(hooks.items()):
            self._replaced.append((hooks, key, hook))
            hooks[key] = self._watched(hook, kind, owner, None)

    def _watched(self, hook: Callable[..., Any], kind: HookKind, owner: Any, place: Any) -> Callable[..., Any]:
        @functools.wraps(hook)  # torch names a hook where it does not take what that returns
        def run(*given: Any) -> Any:
            self.last = found = HookRun(hook, kind, owner, place, given)
            with self._inside:
                found.returned = hook(*given)
            found.is_finished = True
            if found.returned is not None:
                self.last_to_change = found
            return found.returned

        return run


def tensors_with_hooks(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a model that have hooks, each with its name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in named if tensor._backward_hooks]
