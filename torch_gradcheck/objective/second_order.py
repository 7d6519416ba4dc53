"""The slope of J along v, ⟨v, ∇J(θ)⟩, as another loss: its gradient ∇²J v is what a double backward gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.function_outputs import inner
from torch_gradcheck.objective.given import UNKNOWN, Given
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import Direction, real_view
from torch_gradcheck.objective.returned import scalar
from torch_gradcheck.torch_internals.autograd import function_of, nodes_from, reentrant_checkpoint

STREAM = 0x5EC0
"""Added to the seed: what is drawn from the seed itself may be the model's own weights."""


BY_CLOSURE = (
    "the closure calls backward() itself, which leaves gradients without a graph. Let it return the loss, and leave "
    "the backward to the check."
)

BY_FUNCTION = (
    "the backward of a Function in J runs another backward, as a checkpoint or a reversible layer does, which leaves "
    "gradients in .grad. They have no graph, so that there is no double backward to check."
)


class Slope:
    """⟨v, ∇J(θ)⟩ over the parameters on trial, as a function of nothing; θ is where they are when it is made.

    v is signed, and its entries have sizes between ½ and 1½ times the root mean square of their tensor at θ, 1 where
    all of it is 0. So a tensor in another unit changes nothing, and along v each moves J by its share: the part of no
    tensor drowns that of another.

    Args:
        compute: J.
        parameters: on trial, and variables that are, if J depends on them.
        seed: of v.
        given: what the caller gave to compute J.

    Attributes:
        loss: J where it was evaluated last, a 0-dim tensor.
        reached: the ids of the parameters that J depends on, as far as its backward tells.
    """

    def __init__(
        self, compute: Callable[[], Any], parameters: Sequence[torch.Tensor], seed: int, given: Given = UNKNOWN
    ) -> None:
        self._compute, self._parameters, self._given = compute, parameters, given
        generator = torch.Generator("cpu").manual_seed((seed + STREAM) % 2**63)
        self._directions = [direction(parameter, generator) for parameter in parameters]
        self.loss, self.reached = torch.tensor(math.nan), set[int]()

    def __call__(self) -> torch.Tensor:
        """The slope at what the parameters hold now, with a graph where autograd is on.

        Where it is off, the gradient is that of an ordinary backward, as an optimizer gets it.

        Raises:
            InvalidRequestError: a backward is run by J itself, or by one inside of it, as by a reentrant checkpoint.
        """
        with_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            loss = self.value()
            self.loss = loss.detach()  # not read: a record of the slope must not depend on it
            self._refuse_accumulated(BY_CLOSURE)
            gradients = self._gradients(loss, with_graph)
            self._refuse_accumulated(BY_FUNCTION)
            slopes = [inner(v, each) for v, each in zip(self._directions, gradients, strict=True) if each is not None]
            return torch.stack(slopes).sum() if slopes else torch.zeros_like(loss)

    def value(self) -> torch.Tensor:
        """J itself; only inside of an evaluation of the slope."""
        return scalar(self._compute(), self._given)

    def terms(self) -> float:
        """Σ |v| |∇J|, the size of what the slope is the sum of; only inside of an evaluation of it."""
        with torch.enable_grad():
            gradients = self._gradients(self.value(), with_graph=False)
        found = [(v, each) for v, each in zip(self._directions, gradients, strict=True) if each is not None]
        return float(sum((v.abs() * each.abs()).sum() for v, each in found))

    @property
    def along(self) -> Direction:
        """The direction v through the parameters, at θ now."""
        return Direction(self._parameters, [real_view(v) for v in self._directions])

    def _refuse_accumulated(self, why: str) -> None:
        """Raises where a backward has left a gradient in `.grad`."""
        if any(parameter.grad is not None for parameter in self._parameters):
            raise InvalidRequestError(f"order=2: {why}")

    def _gradients(self, loss: torch.Tensor, with_graph: bool) -> Sequence[torch.Tensor | None]:
        """The gradients of J; None for those that it does not reach."""
        asked = [parameter for parameter in self._parameters if parameter.requires_grad]
        if not (loss.requires_grad and asked):
            return [None for _ in self._parameters]
        if with_graph:
            _refuse_reentrant_checkpoints(loss)
        made: Sequence[torch.Tensor | None] = torch.autograd.grad(
            loss, asked, create_graph=with_graph, allow_unused=True
        )
        found = {
            id(parameter): gradient for parameter, gradient in zip(asked, made, strict=True) if gradient is not None
        }
        self.reached |= set(found)
        return [_dense(found[id(each)]) if id(each) in found else None for each in self._parameters]


def _refuse_reentrant_checkpoints(loss: torch.Tensor) -> None:
    """Raises where J contains one: parameters inside of it can only accumulate a gradient, without a graph."""
    if reentrant_checkpoint() in [function_of(node) for node in nodes_from([loss.grad_fn])]:
        raise InvalidRequestError(
            "order=2: J contains a checkpoint with use_reentrant=True, which no double backward goes through. Check it "
            "with use_reentrant=False."
        )


def direction(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """v of one tensor, in both parts of a complex one."""
    numbers = real_view(parameter.detach().resolve_conj())
    draws = torch.rand((2, *numbers.shape), generator=generator, dtype=torch.float64, device="cpu")
    signed = (0.5 + draws[0]) * torch.where(draws[1] < 0.5, -1.0, 1.0)
    size = float(numbers.double().square().mean().sqrt()) if numbers.numel() else 0.0
    v = (signed * (size or 1.0)).to(numbers)
    return torch.view_as_complex(v) if parameter.is_complex() else v


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def on_slope(objective: Objective, order: int) -> str:
    """The note on what J is in a check of second order; "" in one of the first."""
    if order == 1:
        return ""
    what = (
        "second order: J is the slope ⟨v, ∇J⟩ of the loss along a random direction v. "
        "Differences of the first-order gradient are compared with what a double backward gives; the first-order "
        "gradient itself is not on trial (order=1 checks it)"
    )
    if objective.with_graph is None:
        return what
    return (
        f"{what}. With create_graph=True the backward gives another first-order gradient: the slope is "
        f"{objective.with_graph:.8g} then, and {objective.loss:.8g} without"
    )
