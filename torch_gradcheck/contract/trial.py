"""The function on trial, lent, and run alone as often as an entry of its contract asks for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch

from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.contract.comparison import Allowance, allowance, difference, distance, same_bits
from torch_gradcheck.contract.run import Run, backwards_in_words
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.function_call import FunctionCall
from torch_gradcheck.objective.function_loss import FunctionLoss
from torch_gradcheck.objective.function_outputs import outputs_of
from torch_gradcheck.objective.variables import Variable, objects_of


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

    @cached_property
    def parameters(self) -> list[Variable]:
        """The parameters of a module that are on trial; none of a function."""
        arguments = {id(tensor) for tensor in objects_of(self.call.variables)}
        checked = [self.problem.theta[position] for position in self.problem.theta.checked]
        return [
            Variable(each.name, each.parameter, each.role) for each in checked if id(each.parameter) not in arguments
        ]

    @property
    def all_names(self) -> list[str]:
        """The names of the arguments on trial and then of the parameters, in the order of `Run.gradients`."""
        return [*self.names, *[parameter.name for parameter in self.parameters]]

    @property
    def draws(self) -> bool:
        """Whether the function draws random numbers, forward or backward."""
        return not (self.problem.objective.random_state.is_empty and self._first[1].is_empty)

    def fresh(self) -> list[torch.Tensor]:
        """Leaves that require a gradient, with the values of the arguments on trial, in the precision of the check."""
        return [tensor.detach().clone().requires_grad_() for tensor in objects_of(self.call.variables)]

    def regime(self) -> AbstractContextManager[None]:
        """The state that J is evaluated in: the same random state at every entry, all put back afterwards."""
        self._first[1].restore()
        return self.problem.objective.regime()

    def outputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors that the function returns for these arguments; only inside of `regime`."""
        return [tensor for _, tensor in outputs_of(self.call.called(tensors))]

    def cotangents(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """v of each output, as J has it."""
        return [self.loss.cotangent(position, output) for position, output in enumerate(outputs)]

    def run(
        self, tensors: Sequence[torch.Tensor] | None = None, cotangents: Sequence[torch.Tensor | None] | None = None
    ) -> Run:
        """Forward and backward, in a regime of its own.

        Args:
            tensors: in the places of the arguments on trial; those that require a gradient are leaves. None: `fresh()`.
            cotangents: the gradient of each output, None for one that the loss does not use; None: v of each.
        """
        with torch.enable_grad(), self.regime():
            return self._ran(self.fresh() if tensors is None else tensors, cotangents)

    def _ran(self, leaves: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor | None] | None) -> Run:
        named = outputs_of(self.call.called(leaves))
        outputs = [tensor for _, tensor in named]
        given = self.cotangents(outputs) if cotangents is None else cotangents
        used = [(y, v) for y, v in zip(outputs, given, strict=True) if y.requires_grad and v is not None]
        every_leaf = [*leaves, *objects_of(self.parameters)]
        gradients = gradients_of([y for y, _ in used], every_leaf, [v for _, v in used])
        return Run([name for name, _ in named], [y.detach() for y in outputs], gradients)

    @property
    def first(self) -> Run:
        """A run on equal arguments with v: what other runs are compared with."""
        return self._first[0]

    @cached_property
    def second(self) -> Run:
        """One more such run."""
        return self.run()

    @cached_property
    def _first(self) -> tuple[Run, RandomState]:
        """That run, and the state it started from of the generators that it draws from, a backward too."""
        state = RandomState.of_everything()
        with torch.enable_grad(), self.problem.objective.regime():
            run = self._ran(self.fresh(), None)
            state.narrow_to_moved()
        return run, state

    @cached_property
    def spreads(self) -> list[float]:
        """What the gradients of two equal runs differ by, in the order of `Run.gradients`."""
        return [distance(*pair) for pair in zip(self.first.gradients, self.second.gradients, strict=True)]

    @cached_property
    def allowance(self) -> Allowance:
        """What rounding may do to the gradients of a run on the arguments on trial."""
        request = self.problem.request
        return allowance(self.first, self.cotangents(self.first.outputs), request.tolerance, request.dtype)

    def difference(
        self, found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None], at: Sequence[int] = ()
    ) -> str:
        """Which gradients are not as expected, by more than rounding and what equal runs differ by.

        As "the gradient of w is 2 at [0, 1], should be 1 (3 of 4 entries differ)"; "" where all are.

        Args:
            found: in the order of `Run.gradients`; None is zeros.
            expected: in the same order.
            at: the positions to compare; empty: all.
        """
        words: list[str] = []
        for position in at or range(len(expected)):
            one, other = found[position], expected[position]
            if not same_bits(one, other):
                allowed = self.allowance.of(other, self.spreads[position])
                words.append(difference(one, other, allowed) and f"the gradient of {self.all_names[position]} ")
                words[-1] += difference(one, other, allowed)
        return "; ".join(filter(None, words))

    @cached_property
    def backwards(self) -> str:
        """The words " (Square.backward at FILE:LINE)" for what the user has written of the backward; "" for nothing."""
        with torch.enable_grad(), self.regime():
            return backwards_in_words(self.outputs(self.fresh()))
