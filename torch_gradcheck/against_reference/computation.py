"""One of the two computations that are compared, the candidate or the reference: its forward, ready for a backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from torch_gradcheck.against_reference.upstream import Upstream
from torch_gradcheck.contract.upstream import losses_giving
from torch_gradcheck.objective.function_loss import FunctionLoss, WrittenArgumentsError, model_of
from torch_gradcheck.objective.function_outputs import outputs_of
from torch_gradcheck.objective.loss import Loss, ModuleLoss
from torch_gradcheck.objective.objective import scalar
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.torch_internals.autograd import writes_to_a_leaf


class Forward(NamedTuple):
    """What a forward left.

    Attributes:
        outputs: every tensor that was returned, named `output` or `output[1]`.
        losses: numbers whose backward leaves the gradients that are compared.
    """

    outputs: Sequence[tuple[str, torch.Tensor]]
    losses: Sequence[torch.Tensor]


class Computation(Protocol):
    """A candidate or a reference as the user gave it, before its model is lent."""

    @property
    def model(self) -> nn.Module:
        """The module that is called, or one that stands for a function."""

    @property
    def loss(self) -> Loss:
        """J of a check by differences; its holders and variables are lent with the model."""

    def at(self, dtype: torch.dtype | None) -> Callable[[], Forward]:
        """The forward of the lent model as a function of nothing, on inputs in `dtype` (None: each in its own)."""


@dataclass(frozen=True)
class FunctionComputation:
    """A function of its arguments, under random gradients of its outputs.

    Attributes:
        loss: the function and its arguments.
        upstream: the gradients that its outputs are given.
    """

    loss: FunctionLoss
    upstream: Upstream

    @property
    def model(self) -> nn.Module:
        """See `Computation`."""
        return model_of(self.loss.call.function)

    def at(self, dtype: torch.dtype | None) -> Callable[[], Forward]:  # noqa: ARG002 - the arguments are lent in it
        """See `Computation`."""
        return self._forward

    def on_copies(self) -> FunctionComputation:
        """The same with a function that gets copies of its arguments, which are no leaves, to write to."""
        return replace(self, loss=self.loss.on_copies())

    def _forward(self) -> Forward:
        outputs = outputs_of(self._called())
        tensors = [tensor for _, tensor in outputs]
        cotangents = [self.upstream.of(position, tensor) for position, tensor in enumerate(tensors)]
        return Forward(outputs, losses_giving(tensors, cotangents))

    def _called(self) -> Any:
        try:
            return self.loss.call.called(objects_of(self.loss.variables))
        except RuntimeError as error:
            if self.loss.call.writes or not writes_to_a_leaf(error):
                raise
            raise WrittenArgumentsError from error


@dataclass(frozen=True)
class ModuleComputation:
    """A model under the user's loss, on a batch.

    Attributes:
        loss: the model, the loss function and the batch.
    """

    loss: ModuleLoss

    @property
    def model(self) -> nn.Module:
        """See `Computation`."""
        return self.loss.model

    def at(self, dtype: torch.dtype | None) -> Callable[[], Forward]:
        """See `Computation`."""
        seen: list[Any] = []

        def watched(output: Any, *targets: Any) -> Any:
            seen[:] = outputs_of(output)
            return self.loss.loss_fn(output, *targets)

        watching = replace(self.loss, loss_fn=watched)
        kept = None if dtype is None else watching.at(dtype)

        def forward() -> Forward:
            compute = kept or watching.at(None)  # in its own precision, the batch is copied anew for every run
            loss = scalar(compute())
            return Forward(list(seen), [loss] if loss.requires_grad else [])

        return forward
