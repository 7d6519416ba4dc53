"""A hook on the model that notes each forward of a scheduled step, so that the step can be run again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_gradcheck.torch_internals.autograd import in_backward
from torch_gradcheck.training_step.forward_state import SeenForward, seen_now


class ForwardHook:
    """Notes each call of a model while it is attached; attaching it twice attaches it once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[SeenForward] = []
        self._handle: Any = None
        self._told = False

    @property
    def attached(self) -> bool:
        """Whether calls are noted."""
        return self._handle is not None

    def attach(self) -> None:
        """From here on calls are noted, starting with none."""
        self.calls, self._told = [], False
        if self._handle is None:
            self._handle = nn.Module.register_forward_pre_hook(self.model, self._note, with_kwargs=True, prepend=True)

    def detach(self) -> None:
        """Calls are no longer noted, and those that were are forgotten."""
        self.calls = []
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def note_now(self) -> None:
        """Notes that a forward begins here, whatever modules it calls; calls of the model count no more."""
        if not self._told:
            self.calls, self._told = [], True
        self.calls.append(seen_now(self.model))

    def _note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or self._told or not torch.is_grad_enabled() or in_backward():
            return
        self.calls.append(seen_now(model, args, kwargs))
