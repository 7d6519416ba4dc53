"""The function on trial, lent, and run alone as often as an entry of its contract asks for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.function_call import FunctionCall
from torch_gradcheck.objective.function_loss import FunctionLoss
from torch_gradcheck.objective.function_outputs import outputs_of
from torch_gradcheck.objective.variables import objects_of


@dataclass(frozen=True)
class Trial:
    """What the entries of the contract try.

    Attributes:
        problem: J, lent; `problem.objective` is J after its preflight, `problem.theta` all that is on trial: the
            parameters of a module, then the arguments.
        loss: J as an object: the function and its arguments.
        proven: the names of the rows whose gradient is right.
    """

    problem: Problem
    loss: FunctionLoss
    proven: frozenset[str] = frozenset()

    @property
    def call(self) -> FunctionCall:
        """The function with its arguments."""
        return self.loss.call

    @property
    def names(self) -> list[str]:
        """The names of the arguments on trial."""
        return [variable.name for variable in self.call.variables]

    def fresh(self) -> list[torch.Tensor]:
        """Leaves that require a gradient, with the values of the arguments on trial, in the precision of the check."""
        return [tensor.detach().clone().requires_grad_() for tensor in objects_of(self.call.variables)]

    def regime(self) -> AbstractContextManager[None]:
        """The state that J is evaluated in: the same random state at every entry, all put back afterwards."""
        return self.problem.objective.regime()

    def outputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors that the function returns for these arguments; only inside of `regime`."""
        return [tensor for _, tensor in outputs_of(self.call.called(tensors))]

    def cotangents(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """v of each output, as J has it."""
        return [self.loss.cotangent(position, output) for position, output in enumerate(outputs)]
