"""The state that a training loop's own forward started from, so that it can be run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.borrowing.spectral_norm import PowerIterations
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.torch_internals.devices import accelerator_type
from torch_gradcheck.torch_internals.tensors import version_of

Autocast = Mapping[str, tuple[bool, torch.dtype]]
"""Device type → (autocast is on for it, the dtype it casts to)."""


@dataclass(frozen=True)
class SeenForward:
    """One call of the model with gradients on, as it began.

    Attributes:
        start: the random state and the values of the buffers.
        autocast: the autocast in force.
        versions: parameter → its version counter; a later count that differs means that it was written to.
        args, kwargs: the arguments of the model.
        written: id of each tensor among them → its version counter.
        held_grad: id of each tensor among them, or in an object among them → whether it had a `.grad` already.
    """

    start: Start
    autocast: Autocast
    versions: Mapping[nn.Parameter, int]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    written: Mapping[int, int] = field(default_factory=dict)
    held_grad: Mapping[int, bool] = field(default_factory=dict)

    @property
    def has_inputs(self) -> bool:
        """Whether the model was called with tensors; not where a forward was only said to begin."""
        return bool(self.written)

    def is_unchanged(self, tensor: torch.Tensor) -> bool:
        """Whether one of its tensors has not been written to since."""
        return self.written.get(id(tensor)) == version_of(tensor)

    def weights_moved(self) -> bool:
        """Whether a parameter has been written to since."""
        return any(version_of(parameter) != version for parameter, version in self.versions.items())


def seen_now(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = MappingProxyType({})
) -> SeenForward:
    """The state that a forward which begins now starts from."""
    generators = list(captures_of(model).generators.values())  # those that a loan of the model finds
    iterations = PowerIterations(model.modules())
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers() if not iterations.moves(buffer)}
    versions = {parameter: version_of(parameter) for parameter in model.parameters()}
    written = {id(tensor): version_of(tensor) for _, tensor in tensors_in([args, kwargs])}
    held = {id(tensor): holds_grad(tensor) for _, tensor in tensors_in([args, kwargs], objects=True)}
    start = Start(RandomState.of_everything(generators), buffers)
    return SeenForward(start, autocast_now(), versions, args, kwargs, written, held)


def holds_grad(tensor: torch.Tensor) -> bool:
    """Whether a tensor that keeps a `.grad` has one."""
    return (tensor.is_leaf or tensor.retains_grad) and tensor.grad is not None


def autocast_now() -> Autocast:
    """The autocast that is in force."""
    devices = filter(None, ("cpu", accelerator_type()))
    return {device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices}
