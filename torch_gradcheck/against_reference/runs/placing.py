"""On which device the reference is computed: where the candidate is, or on the CPU where that device has no float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from torch_gradcheck.against_reference.runs.computation import Computation, ModuleComputation
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.torch_internals.devices import has_float64


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

    @property
    def of_loans(self) -> torch.device | None:
        """The device of everything that is lent of the reference; None for its own, or that of its values."""
        return None if self.instead_of is None else self.device

    def moved(self, tensors: Sequence[torch.Tensor]) -> Mapping[torch.Tensor, torch.Tensor]:
        """Copies here of those that are on another device."""
        elsewhere = [each for each in tensors if self.device not in (None, each.device) and not each.is_meta]
        return {each: each.detach().to(self.device) for each in elsewhere}

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


ANYWHERE = Place(None)
"""Everything stays where it is."""


def place_of(candidate: Computation) -> Place:
    """Where the reference of a candidate is computed."""
    tensors = [*_held(candidate.model), *objects_of(candidate.loss.variables)]
    devices = {each.device for each in tensors}
    if len(devices) != 1:
        return ANYWHERE
    (device,) = devices
    return Place(device) if has_float64(device) else Place(torch.device("cpu"), device)


def _held(model: nn.Module) -> Sequence[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
