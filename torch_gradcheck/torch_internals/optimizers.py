"""What a gradient scaler has done to the gradients of a step, and which parameters an optimizer steps."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from torch_gradcheck.torch_internals.missing import internal


@dataclass(frozen=True)
class Look:
    """What a scaler has found when it looked at the gradients of an optimizer, which it then divided by its scale.

    Attributes:
        parameters: the ids of what the optimizer steps; None: it is not known, and may be anything.
        infinite: some are not finite, so that the scaler skips the step of this optimizer.
    """

    parameters: frozenset[int] | None
    infinite: bool

    def is_at(self, tensor: torch.Tensor) -> bool:
        """Whether it was at the gradient of this tensor."""
        return self.parameters is None or id(tensor) in self.parameters


@dataclass(frozen=True)
class Scaling:
    """The loss scale of a step, and how far its scaler has come since its last update: optimizer by optimizer.

    Attributes:
        scale: the factor on the loss before its backward.
        is_on: there is a scaler, and it does something.
        looks: those that it has had.
    """

    scale: float = 1.0
    is_on: bool = False
    looks: Sequence[Look] = ()

    @classmethod
    def of(cls, scaler: torch.amp.GradScaler | None) -> Scaling:
        """That of a scaler as it is now; of none, a scale of 1."""
        if scaler is None or not scaler.is_enabled():
            return cls()
        return cls(scaler.get_scale(), True, _looks_of(scaler))

    @property
    def has_unscaled(self) -> bool:
        """Whether the gradients of some optimizer have been divided by the scale."""
        return bool(self.looks)

    def carried(self, tensor: torch.Tensor) -> float:
        """The scale that the gradient of a parameter still carries."""
        return 1.0 if any(look.is_at(tensor) for look in self.looks) else self.scale

    def skips(self, tensor: torch.Tensor) -> bool:
        """Whether a step by a gradient that is not finite is skipped: the scaler has found that, or has still to look.

        What no optimizer steps is not stepped either.
        """
        found = [look.infinite for look in self.looks if look.is_at(tensor)]
        return self.is_on and (not found or any(found))

    def skipped_of(self, tensors: Sequence[torch.Tensor]) -> set[int]:
        """The positions of those of these tensors that `skips` holds of."""
        return {position for position, tensor in enumerate(tensors) if self.skips(tensor)}


def _looks_of(scaler: torch.amp.GradScaler) -> list[Look]:
    states = internal(scaler, "_per_optimizer_states", "see whether .grad still carries the loss scale")
    looked = {key: state for key, state in states.items() if state["stage"] is not OptState.READY}
    optimizers = {id(each): each for each in _optimizers_alive()} if looked else {}
    return [_look(state, optimizers.get(key)) for key, state in looked.items()]


def _look(state: dict[str, Any], optimizer: torch.optim.Optimizer | None) -> Look:
    infinite = any(float(number) for number in state["found_inf_per_device"].values())
    parameters = None if optimizer is None else frozenset(map(id, parameters_of(optimizer)))
    return Look(parameters, infinite)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """What an optimizer steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizers_of(parameters: Sequence[torch.Tensor]) -> list[torch.optim.Optimizer]:
    """All optimizers that step some of these parameters."""
    ids = set(map(id, parameters))
    return [each for each in _optimizers_alive() if not ids.isdisjoint(map(id, parameters_of(each)))]


def _optimizers_alive() -> list[torch.optim.Optimizer]:
    """All optimizers that there are: a scaler and a parameter do not say which are theirs."""
    return [each for each in gc.get_objects() if issubclass(type(each), torch.optim.Optimizer)]
