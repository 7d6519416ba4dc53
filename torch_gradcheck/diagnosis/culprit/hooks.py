"""Watches the hooks of one run of J: which of them change the gradient that they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from torch_gradcheck.diagnosis.culprit.argument_copies import tensors_of
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.torch_internals.autograd import hooks_of
from torch_gradcheck.torch_internals.code_lines import CodeLine, at_line_of, calling_line
from torch_gradcheck.torch_internals.modules import has_backward_hooks, with_backward_hooks

Hook = Callable[..., Any]


@dataclass(frozen=True)
class ChangingHook:
    """A hook that gave another gradient than it was shown.

    Attributes:
        hook: the caller's function.
        module: whose backward hook it is; None for a hook on a tensor.
        call: the call in whose forward it was put on a tensor; None where the loss function or closure did.
        registered: the line that did.
    """

    hook: Hook
    module: nn.Module | None = None
    call: RecordedCall | None = None
    registered: CodeLine | None = None

    def __str__(self) -> str:
        """What it is, as "a backward hook of the module at FILE:LINE"."""
        if self.module is not None:
            return f"a backward hook of the module{at_line_of(self.hook)}"
        at = at_line_of(self.hook)
        by = "" if self.registered is None or at == f" at {self.registered}" else f", registered at {self.registered},"
        return f"a hook on a tensor{at}{by}"


class HookWatch(TorchFunctionMode):
    """Notes in `changing` the backward hooks of modules, and the hooks that J puts on tensors, which change gradients.

    Hooks on parameters are not watched: their part in an error is measured.

    Args:
        model: whose modules' hooks are watched.
        running: gives the innermost call that is running.
    """

    def __init__(self, model: nn.Module, running: Callable[[], RecordedCall | None]) -> None:
        super().__init__()
        self.changing: list[ChangingHook] = []
        self._model, self._running, self._modules = model, running, ExitStack()

    def __enter__(self) -> HookWatch:
        for module in self._model.modules():
            if has_backward_hooks(module):
                self._modules.enter_context(with_backward_hooks(module, partial(self._of, module)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._modules.close()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        registers = func is torch.Tensor.register_hook
        if registers and not kwargs and not args[0].is_leaf:
            found = ChangingHook(args[1], call=self._running(), registered=calling_line())
            return func(args[0], self._watched(found))
        return func(*args, **(kwargs or {}))

    def _of(self, module: nn.Module, hook: Hook) -> Hook:
        return self._watched(ChangingHook(hook, module))

    def _watched(self, found: ChangingHook) -> Hook:
        """The hook, which is noted where what it returns, or leaves in what it was given, is another gradient."""
        changing = self.changing  # a hook that held on to this watch would hold on to the graph that it is on

        def watched(*arguments: Any) -> Any:
            shown = arguments[1] if found.module is not None else arguments[0]
            before = [each.detach().clone() for each in tensors_of(shown)]
            result = found.hook(*arguments)
            after = tensors_of(shown if result is None else result)
            if found not in changing and not _equal(before, after):
                changing.append(found)
            return result

        return watched


def hooks_on(parameter: torch.Tensor) -> str:
    """The lines of the hooks on a parameter, as " at net.py:3, net.py:9"; "" where there are none to tell."""
    lines = dict.fromkeys(line for hook in hooks_of(parameter) if (line := at_line_of(hook)))
    return ",".join(line if k == 0 else line.removeprefix(" at") for k, line in enumerate(lines))


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)
    )
