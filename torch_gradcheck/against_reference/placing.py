"""On which device the reference is computed: where the candidate is, or on the CPU where that device has no float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from torch_gradcheck.against_reference.computation import Computation, ModuleComputation
from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.torch_internals.devices import has_float64

Values = Mapping[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Place:
    """The device that a reference is computed on.

    Attributes:
        device: None leaves everything where it is: a candidate on several devices has a reference that knows the ways
            between them.
        instead_of: the device of the candidate, where that has no float64.
    """

    device: torch.device | None
    instead_of: torch.device | None = None

    def values(self, reference: Computation, given: Values) -> Values:
        """What the reference's tensors hold in its loans: `given`, and copies of those that are on another device.

        The model of the reference is moved as `model.to(device)` would. Where the candidate's device has no float64,
        its arguments and all that it captures are, too.
        """
        if self.device is None:
            return given
        found = list(_held(reference.model))
        if self.instead_of is not None:
            found += captures_of(reference.model, *reference.loss.holders).tensors.values()
        moved = {
            each: each.detach().to(self.device) for each in found if each.device != self.device and _can_move(each)
        }
        return {**moved, **{each: value.detach().to(self.device) for each, value in given.items()}}

    def of(self, reference: Computation) -> Computation:
        """The reference with those tensors of its batch here that are not lent, where it is computed elsewhere."""
        if self.instead_of is None or not isinstance(reference, ModuleComputation):
            return reference
        lent = {id(each.stands_for) for each in reference.loss.variables}
        batch = rebuilt(reference.loss.batch, lambda each: each if id(each) in lent else each.to(self.device))
        return replace(reference, loss=replace(reference.loss, batch=batch))

    @property
    def notes(self) -> list[str]:
        """The note on a reference that is computed elsewhere."""
        if self.instead_of is None:
            return []
        return [f"{self.instead_of.type} has no float64: the reference was computed on the {self.device}"]


def place_of(candidate: Computation) -> Place:
    """Where the reference of a candidate is computed."""
    tensors = [*_held(candidate.model), *objects_of(candidate.loss.variables)]
    devices = {each.device for each in tensors}
    if len(devices) != 1:
        return Place(None)
    (device,) = devices
    return Place(device) if has_float64(device) else Place(torch.device("cpu"), device)


def _held(model: nn.Module) -> Sequence[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _can_move(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta
