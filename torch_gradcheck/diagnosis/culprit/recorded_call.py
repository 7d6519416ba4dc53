"""One call of a recorded run: what was called, with what, and the gradients that reached and left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.diagnosis.culprit.double_backward import gradients_with_graph
from torch_gradcheck.torch_internals.devices import in_float64

Owner = nn.Module | type[Function]


@dataclass(eq=False)
class RecordedCall:
    """One call of a module or of a custom autograd.Function; or of the backward of one, where J differentiates it.

    Attributes:
        owner: the module, or the Function's class.
        parent: the call that made this one; None for the loss function or closure itself.
        children: the calls that this one made.
        arguments: copies of (args, kwargs) as they were at the start, tensors detached. Parameters are themselves: a
            Function may know them by another way as well.
        inputs: the tensors in `arguments`.
        differentiable: for each of them, whether it required a gradient.
        grad_enabled: whether autograd was on.
        in_backward: whether a backward made the call, as a checkpoint that recomputes does.
        random: the state of the random generators at the start.
        outputs: `summary` of each tensor in the result: shape, sum and sum of absolute values.
        cotangents: the gradient that arrived for each output, None where none did.
        returned: the gradient that left the call for a tensor in `arguments`, by the tensor's position, where a tap saw
            it. A tensor that is given twice has one, at its first position.
        tapped: positions of the inputs whose gradients would be in `returned`.
        leaks: whether a graph leaves the module by an attribute, besides its outputs.
        number: its place among the calls that no backward made; −1 for those that one made.
        ungraphed: copies of the outputs that have no graph though autograd was on, by position.
        differentiates: the call whose backward this one is, run by J with a graph; None for a forward. The arguments
            are the gradients that the backward is given, then those of the forward.
        made_by: the call of a Function in whose backward this one was made; None where in none.
        differentiated: whether J ran a backward with a graph through it, so that gradients reach what is inside of it.
    """

    owner: Owner
    parent: RecordedCall | None
    arguments: tuple[Any, Any]
    inputs: list[torch.Tensor]
    differentiable: list[bool]
    grad_enabled: bool
    in_backward: bool
    random: RandomState
    children: list[RecordedCall] = field(default_factory=list)
    outputs: list[tuple[tuple[int, ...], float, float]] = field(default_factory=list)
    cotangents: list[torch.Tensor | None] = field(default_factory=list)
    returned: dict[int, torch.Tensor] = field(default_factory=dict)
    tapped: list[int] = field(default_factory=list)
    leaks: bool = False
    number: int = -1
    ungraphed: dict[int, torch.Tensor] = field(default_factory=dict)
    differentiates: RecordedCall | None = None
    made_by: RecordedCall | None = None
    differentiated: bool = False

    @property
    def receives(self) -> bool:
        """Whether a gradient arrived for any output."""
        return any(cotangent is not None for cotangent in self.cotangents)

    @property
    def asked(self) -> list[int]:
        """The positional arguments that are tensors which required a gradient."""
        required = {id(tensor) for tensor, asked in zip(self.inputs, self.differentiable, strict=True) if asked}
        return [k for k, value in enumerate(self.arguments[0]) if id(value) in required]

    @property
    def left(self) -> dict[int, torch.Tensor]:
        """`returned`, where it is the gradient for what this call put out, and for nothing inside of it besides."""
        return {} if self.differentiated else self.returned

    def inside(self) -> Iterator[RecordedCall]:
        """All calls made inside of this one, at any depth."""
        for child in self.children:
            yield child
            yield from child.inside()

    def run(self, arguments: tuple[Any, Any]) -> Any:
        """Calls the owner once more, with the given (args, kwargs)."""
        forward = self.differentiates
        if forward is not None and isinstance(self.owner, type):
            given = len(arguments[0]) - len(forward.arguments[0])
            return gradients_with_graph(self.owner, arguments[0][given:], forward.asked, arguments[0][:given])
        function: Callable[..., Any] = self.owner if isinstance(self.owner, nn.Module) else self.owner.apply
        return function(*arguments[0], **arguments[1])


def summary(tensor: torch.Tensor) -> tuple[tuple[int, ...], float, float]:
    """Shape, sum and sum of absolute values of a tensor, to compare the outputs of two runs by."""
    values = in_float64(tensor.detach())
    total = values.real if values.is_complex() else values
    return tuple(values.shape), float(total.sum()), float(values.abs().sum())
