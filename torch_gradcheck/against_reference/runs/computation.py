"""One of the two computations that are compared, the candidate or the reference: its forward, ready for a backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from torch_gradcheck.against_reference.runs.upstream import Upstream
from torch_gradcheck.contract.upstream import losses_giving
from torch_gradcheck.objective.function_loss import FunctionLoss, WrittenArgumentsError, model_of
from torch_gradcheck.objective.function_outputs import outputs_of
from torch_gradcheck.objective.loss import Loss, ModuleLoss, on_not_perturbed
from torch_gradcheck.objective.returned import scalar
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.torch_internals.autograd import writes_to_a_leaf

MOST_ALONE = 4
"""With more outputs than these, all of them are given a gradient together only: one alone takes all runs again."""


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

    @property
    def notes(self) -> Sequence[str]:
        """The notes on outputs and inputs that are not compared; to be asked after all runs."""

    def at(self, dtype: torch.dtype | None) -> Callable[[], Forward]:
        """The forward of the lent model as a function of nothing, on inputs in `dtype` (None: each in its own)."""

    def alone(self) -> Mapping[str, Computation]:
        """The same where only one output is given a gradient, by its name; nothing where there are not several.

        To be asked after a first run of the candidate.
        """


@dataclass(frozen=True)
class FunctionComputation:
    """A function of its arguments, under random gradients of its outputs.

    Attributes:
        loss: the function and its arguments.
        upstream: the gradients that its outputs are given.
        only: the position of the only output that is given one; None for all.
    """

    loss: FunctionLoss
    upstream: Upstream
    only: int | None = None

    @property
    def model(self) -> nn.Module:
        """See `Computation`."""
        return model_of(self.loss.call.function)

    @property
    def notes(self) -> Sequence[str]:
        """See `Computation`."""
        return [*self.upstream.notes, *self.loss.notes]

    def at(self, dtype: torch.dtype | None) -> Callable[[], Forward]:  # noqa: ARG002 - the arguments are lent in it
        """See `Computation`."""
        return self._forward

    def on_copies(self) -> FunctionComputation:
        """The same with a function that gets copies of its arguments, which are no leaves, to write to."""
        return replace(self, loss=self.loss.on_copies())

    def _forward(self) -> Forward:
        outputs = outputs_of(self._called())
        given = [
            (tensor, v)
            for position, ((_, tensor), v) in enumerate(zip(outputs, self.upstream.of(outputs), strict=True))
            if v is not None and self.only in (None, position)
        ]
        return Forward(outputs, losses_giving([tensor for tensor, _ in given], [v for _, v in given]))

    def alone(self) -> Mapping[str, FunctionComputation]:
        """See `Computation`."""
        given = self.upstream.given if 1 < len(self.upstream.given) <= MOST_ALONE else {}
        return {name: replace(self, only=position) for position, name in given.items()}

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

    @property
    def notes(self) -> Sequence[str]:
        """See `Computation`."""
        return [note for note in [on_not_perturbed(self.loss)] if note]

    def at(self, dtype: torch.dtype | None) -> Callable[[], Forward]:
        """See `Computation`."""
        seen: list[Any] = []

        def watched(output: Any, *targets: Any) -> Any:
            seen[:] = outputs_of(output)
            return self.loss.loss_fn(output, *targets)

        watched.__wrapped__ = self.loss.loss_fn  # type: ignore[attr-defined]  # refusals name the caller's
        watching = replace(self.loss, loss_fn=watched)
        kept = None if dtype is None else watching.at(dtype)

        def forward() -> Forward:
            compute = kept or watching.at(None)  # in its own precision, the batch is copied anew for every run
            loss = scalar(compute(), self.loss.given)
            return Forward(list(seen), [loss] if loss.requires_grad else [])

        return forward

    def alone(self) -> Mapping[str, Computation]:
        """See `Computation`: the outputs have the gradient that the loss gives them."""
        return {}
