"""What a rank sends to the others of its training step: batches, and what its forwards started from."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.borrowing.random_state import RandomState, SentStates
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.loss import NOTHING, ClosureLoss, Loss, ModuleLoss
from torch_gradcheck.objective.nested import rebuilt, tensors_in
from torch_gradcheck.torch_internals.modules import named_buffers
from torch_gradcheck.training_step.forward_state import Autocast, SeenForward

NOTHING_SENT = "nothing"
"""Stands for a batch that was not given, which no other process knows by its identity."""


@dataclass(frozen=True)
class SentForward:
    """A forward as another rank can run it again.

    Attributes:
        random: the states of the random generators; None where evaluations start from the seed.
        buffers: name → what it held.
        autocast: the autocast in force.
    """

    random: SentStates | None
    buffers: Mapping[str, torch.Tensor]
    autocast: Autocast

    @classmethod
    def of(cls, model: nn.Module, forward: SeenForward) -> SentForward:
        """A forward of this rank, with the buffers of `model` that were seen then."""
        random, values = forward.start.random, forward.start.values
        buffers = {name: values[buffer].cpu() for name, buffer in named_buffers(model) if buffer in values}
        return cls(None if random is None else random.states, buffers, dict(forward.autocast))

    def received(self, model: nn.Module, kept: Collection[str] | None = None) -> SeenForward:
        """The forward for this rank's own model and generators.

        Args:
            model: this rank's.
            kept: the buffers to be put back where the forward begins in the midst of J; None: it begins J, and all
                are taken from `Start.values`.
        """
        own = list(captures_of(model).generators.values())
        random = None if self.random is None else RandomState.received(self.random, own)
        values = {
            buffer: self.buffers[name].to(buffer.device)
            for name, buffer in named_buffers(model)
            if name in self.buffers and (kept is None or name in kept)
        }
        start = Start(random, values) if kept is None else StartInTheMidst(random, values)
        return SeenForward(start, self.autocast, MappingProxyType({}), (), MappingProxyType({}))


@dataclass(frozen=True)
class StartInTheMidst(Start):
    """The start of a forward before which J has run those of other ranks: their updates of buffers are taken back."""

    def restore(self) -> None:
        """Puts the random generators and the buffers to this state."""
        super().restore()
        with torch.no_grad():
            for buffer, value in self.values.items():
                buffer.copy_(value)


@dataclass(frozen=True)
class SentBatch:
    """A batch on its way to the other ranks: on the CPU, no tensor of it with a graph or a `.grad`.

    Attributes:
        batch: the batch; `NOTHING_SENT` where there was none.
        elsewhere: of each tensor of it whether it was on an accelerator.
    """

    batch: Any
    elsewhere: Sequence[bool] = ()

    @classmethod
    def of(cls, loss: Loss) -> SentBatch:
        """The batch of a loss; raises `InvalidRequestError` where it cannot be sent."""
        batch = loss.batch if isinstance(loss, ModuleLoss | ClosureLoss) else NOTHING
        if batch is NOTHING:
            return cls(NOTHING_SENT)
        elsewhere: list[bool] = []

        def sent(tensor: torch.Tensor) -> torch.Tensor:
            elsewhere.append(tensor.device.type != "cpu")
            copy = tensor.detach().to("cpu", copy=True)  # a view would be sent with all that it is one of
            return copy.requires_grad_(tensor.requires_grad)

        found = cls(rebuilt(batch, sent), elsewhere)
        try:
            pickle.dumps(found)
        except Exception as error:
            raise InvalidRequestError(
                f"batch cannot be sent to the other ranks ({type(error).__name__}: {error}), and J is the mean of the "
                "losses of all ranks: give tensors, in tuples, lists and mappings."
            ) from error
        return found

    @property
    def digest(self) -> bytes:
        """A digest of all of it; a pickle of tensors is another one each time."""
        return hashlib.blake2b(pickle.dumps(rebuilt(self.batch, _as_bytes)), digest_size=16).digest()

    @property
    def is_nothing(self) -> bool:
        """Whether there was no batch."""
        return isinstance(self.batch, str) and self.batch == NOTHING_SENT

    @property
    def size(self) -> int | None:
        """The length of its first tensor; None where it has none."""
        found = [tensor for _, tensor in tensors_in(self.batch) if tensor.ndim]
        return len(found[0]) if found else None

    def received(self, loss: Loss, device: torch.device) -> Loss:
        """This rank's loss, of the batch of another rank."""
        if self.is_nothing or not isinstance(loss, ModuleLoss | ClosureLoss):
            return loss
        left = list(self.elsewhere)
        return replace(loss, batch=rebuilt(self.batch, lambda each: each.to(device) if left.pop(0) else each))


def _as_bytes(tensor: torch.Tensor) -> Any:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return tensor
    numbers = tensor.detach().resolve_conj().contiguous().reshape(-1)
    return tuple(tensor.shape), str(tensor.dtype), numbers.view(torch.uint8).numpy().tobytes()
