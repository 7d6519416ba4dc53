"""What a training loop's own forward started from, seen through a hook on the model, so that it can be run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.borrow import Start
from torch_gradcheck.borrowing.global_state import RandomState, accelerator_type, is_generator

Autocast = Mapping[str, tuple[bool, torch.dtype]]
"""Device type → whether autocast is on for it, and to which dtype."""


@dataclass(frozen=True)
class SeenForward:
    """One call of the model with gradients on, as it began.

    Attributes:
        start: the random state and what the buffers held.
        autocast: under which autocast.
        versions: parameter → its version counter: another one later means that it was written to.
        args, kwargs: what the model was called with.
    """

    start: Start
    autocast: Autocast
    versions: Mapping[nn.Parameter, int]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def weights_moved(self) -> bool:
        """Whether a parameter has been written to since."""
        return any(parameter._version != version for parameter, version in self.versions.items())


class ForwardHook:
    """Notes each call of a model while it is attached; attached twice is attached once."""

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
            self._handle = self.model.register_forward_pre_hook(self._note, with_kwargs=True, prepend=True)

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
        if torch.compiler.is_compiling() or self._told or not torch.is_grad_enabled() or _in_backward():
            return
        self.calls.append(seen_now(model, args, kwargs))


def seen_now(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = MappingProxyType({})
) -> SeenForward:
    """What a forward that begins now starts from."""
    generators = [value for module in model.modules() for value in vars(module).values() if is_generator(value)]
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    versions = {parameter: parameter._version for parameter in model.parameters()}
    return SeenForward(Start(RandomState.of_everything(generators), buffers), autocast_now(), versions, args, kwargs)


def autocast_now() -> Autocast:
    """The autocast that is in force."""
    devices = filter(None, ("cpu", accelerator_type()))
    return {device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices}


def _in_backward() -> bool:
    """Whether a backward is running: a checkpoint calls the model again there."""
    return torch._C._current_graph_task_id() != -1
