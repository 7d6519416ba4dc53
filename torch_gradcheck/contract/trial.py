"""The function on trial, lent, and run alone as often as an entry of its contract asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from torch_gradcheck.borrowing.layout_copies import strided_copy
from torch_gradcheck.contract.comparison import Allowance, difference, distance, same_bits
from torch_gradcheck.contract.run import Run, backwards_in_words, forwards_in_words
from torch_gradcheck.contract.starting_state import StartingState
from torch_gradcheck.contract.upstream import gradients_under
from torch_gradcheck.objective.function_call import FunctionCall
from torch_gradcheck.objective.function_loss import FunctionLoss
from torch_gradcheck.objective.function_outputs import outputs_of
from torch_gradcheck.objective.perturbation import Direction
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.objective.variables import Variable, objects_of

Gradients = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class Trial(ABC):
    """What the entries of the contract try: a lent function, in the precision that it is lent in.

    Attributes:
        loss: the function and its arguments.
    """

    loss: FunctionLoss

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The lent module that is called, or one that stands for a function."""

    @property
    @abstractmethod
    def theta(self) -> Theta:
        """All that is on trial: the parameters of a module, then the arguments."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """Of points beside θ."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The coarsest precision that anything on trial is in."""

    @property
    @abstractmethod
    def precisions(self) -> Sequence[torch.dtype]:
        """The precisions in which the function is to run as it is."""

    @property
    @abstractmethod
    def is_candidate(self) -> bool:
        """Whether the function is a kernel in its own precision, and not raised to that of a check."""

    @abstractmethod
    def as_it_is(self, dtype: torch.dtype, run: Callable[[], None]) -> None:
        """Runs something of the function in one of these precisions, casts not raised."""

    @property
    @abstractmethod
    def allowance(self) -> Allowance:
        """What rounding may do to the gradients of a run on the arguments on trial."""

    @abstractmethod
    def evaluation(self) -> AbstractContextManager[None]:
        """The regime of a run, from the random state that the check starts from."""

    @abstractmethod
    def moved(self, direction: Direction, distance: float) -> AbstractContextManager[None]:
        """A block in which the lent tensors are moved along a direction, in all runs."""

    @abstractmethod
    def cotangent(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """v of the output at this position among all tensors that the function returns, in new memory."""

    @property
    @abstractmethod
    def has_other_draws(self) -> bool:
        """Whether the function has drawn random numbers before the contract."""

    @abstractmethod
    def earlier_difference(self) -> str:
        """How runs of the check before differ by more than rounding, and where that code is; "" where they do not."""

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
        checked = [self.theta[position] for position in self.theta.checked]
        return [
            Variable(each.name, each.parameter, role=each.role)
            for each in checked
            if id(each.parameter) not in arguments
        ]

    @property
    def all_names(self) -> list[str]:
        """The names of the arguments on trial and then of the parameters, in the order of `Run.gradients`."""
        return [*self.names, *[parameter.name for parameter in self.parameters]]

    @property
    def draws(self) -> bool:
        """Whether the function draws random numbers, forward or backward."""
        return self._first[1].has_draws or self.has_other_draws

    @property
    def writes(self) -> bool:
        """Whether the function writes to its arguments, and gets copies that are no leaves."""
        return self.call.writes

    def fresh(self) -> list[torch.Tensor]:
        """Leaves that require a gradient, with the values of the arguments on trial, in the precision of the check."""
        return [tensor.detach().clone().requires_grad_() for tensor in objects_of(self.call.variables)]

    def regime(self) -> AbstractContextManager[None]:
        """The state that J is evaluated in: the same random state at every entry, all put back afterwards."""
        self.restore()
        return self.evaluation()

    def restore(self) -> None:
        """Goes back to the state that the first run started from."""
        self._first[1].restore()

    @property
    def arguments(self) -> list[torch.Tensor]:
        """The lent arguments on trial themselves: leaves, which an entry may move in place."""
        return objects_of(self.call.variables)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The lent tensors on trial themselves, arguments and then parameters, in the order of `all_names`."""
        return [*self.arguments, *objects_of(self.parameters)]

    def outputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors that the function returns for these arguments; only inside of `regime`."""
        return [tensor for _, tensor in _outputs(self.call, tensors)]

    @property
    def handing_on(self) -> FunctionCall:
        """The call that hands on the very tensors it is given, which the function may write to."""
        return _handing_on(self.call)

    def cotangents(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """v of each output, as the check has it; copies, which a backward may write to."""
        return [self.cotangent(position, output) for position, output in enumerate(outputs)]

    def run(
        self,
        tensors: Sequence[torch.Tensor] | None = None,
        cotangents: Sequence[torch.Tensor | None] | None = None,
        call: FunctionCall | None = None,
    ) -> Run:
        """Forward and backward, in a regime of its own.

        Args:
            tensors: in the places of the arguments on trial; those that require a gradient are leaves. None: `fresh()`.
            cotangents: the gradient of each output, None for one that the loss does not use; None: v of each.
            call: the function with other arguments besides those on trial; None: with the ones that it has.
        """
        with torch.enable_grad(), self.regime():
            return self._ran(self.fresh() if tensors is None else tensors, cotangents, call or self.call)

    def _ran(self, leaves: Sequence[torch.Tensor], cotangents: Gradients | None, call: FunctionCall) -> Run:
        named = _outputs(call, leaves)
        outputs = [tensor for _, tensor in named]
        given = self.cotangents(outputs) if cotangents is None else cotangents
        gradients = gradients_under(outputs, given, [*leaves, *objects_of(self.parameters)])
        return Run(
            [name for name, _ in named],
            [y.detach().clone() for y in outputs],  # which may be in a workspace that the next run uses
            [y.requires_grad for y in outputs],
            [None if each is None else each.clone() for each in gradients],
        )

    def forward(self, tensors: Sequence[torch.Tensor], call: FunctionCall | None = None) -> list[torch.Tensor]:
        """What the function returns for these arguments, without graphs, in a regime of its own; see `run`."""
        with torch.enable_grad(), self.regime():
            return [output.detach() for _, output in _outputs(call or self.call, tensors)]

    @property
    def first(self) -> Run:
        """A run on equal arguments with v: what other runs are compared with."""
        return self._first[0]

    @cached_property
    def second(self) -> Run:
        """One more such run."""
        return self.run()

    @cached_property
    def _first(self) -> tuple[Run, StartingState]:
        """That run, and the state it started from of the generators that it draws from, a backward too."""
        state = StartingState(self.call.others)
        with torch.enable_grad(), self.evaluation():
            run = self._ran(self.fresh(), None, self.call)
            state.narrow_to_moved()
        return run, state

    @cached_property
    def spreads(self) -> list[float]:
        """What the gradients of two equal runs differ by, in the order of `Run.gradients`."""
        return [distance(*pair) for pair in zip(self.first.gradients, self.second.gradients, strict=True)]

    @cached_property
    def is_repeatable(self) -> bool:
        """Whether two equal runs give the same up to rounding; of others, no results can be compared."""
        pairs = zip(self.all_names, self.first.gradients, strict=True)
        limits = [self.allowance.of(gradient, name=gradient_of(name)) for name, gradient in pairs]
        return all(spread <= limit for spread, limit in zip(self.spreads, limits, strict=True))

    def difference(self, found: Run, expected: Run, terms: Sequence[float] = ()) -> str:
        """Which outputs, or else gradients, are not as expected, by more than rounding and what equal runs differ by.

        As "output[1] is 2 at [0, 1], should be 1 (3 of 4 entries differ)"; "" where all are. For `terms` see
        `gradient_difference`.
        """
        return self.output_difference(found, expected) or self.gradient_difference(
            found.gradients, expected.gradients, terms=terms
        )

    def output_difference(self, found: Run, expected: Run) -> str:
        """Which output is not as expected; "" where all are."""
        if len(found.outputs) != len(expected.outputs):
            return f"the function returns {len(found.outputs)} tensors, should return {len(expected.outputs)}"
        pairs = zip(expected.names, found.outputs, expected.outputs, strict=True)
        words = [self._difference(name, one, other, 0.0) for name, one, other in pairs]
        return next(filter(None, words), "")

    def gradient_difference(
        self, found: Gradients, expected: Gradients, at: Sequence[int] = (), terms: Sequence[float] = ()
    ) -> str:
        """Which gradients are not as expected, as "the gradient of w is 2 at [0, 1], should be 1"; "" where all are.

        Args:
            found: in the order of `Run.gradients`; None is zeros.
            expected: in the same order.
            at: the positions to compare; empty: all.
            terms: of each gradient, see `Allowance.of`; empty: none is a sum of the contract's own.
        """
        positions, sizes = at or range(len(expected)), terms or [0.0 for _ in expected]
        words = [
            self._difference(gradient_of(self.all_names[p]), found[p], expected[p], self.spreads[p], sizes[p])
            for p in positions
        ]
        return "; ".join(filter(None, words))

    def _difference(
        self, name: str, one: torch.Tensor | None, other: torch.Tensor | None, spread: float, terms: float = 0.0
    ) -> str:
        if same_bits(one, other):
            return ""
        if one is not None and other is not None and one.shape == other.shape:
            one = torch.where(other.isnan(), other, one)  # nobody knows what should stand there
        words = difference(one, other, self.allowance.of(other, spread, name, terms))
        return words and f"{name} {words}"

    @cached_property
    def backwards(self) -> str:
        """The words " (Square.backward at FILE:LINE)" for what the user has written of the backward; "" for nothing."""
        with torch.enable_grad(), self.regime():
            return backwards_in_words(self.outputs(self.fresh()))

    @cached_property
    def forwards(self) -> str:
        """The words " (Square.forward at FILE:LINE)" for what the user has written of the forward; "" for nothing."""
        with torch.enable_grad(), self.regime():
            return forwards_in_words(self.call.function, self.outputs(self.fresh()))

    def at_fault(self, found: Run, expected: Run) -> str:
        """`forwards` where the outputs of a run are not as expected, else `backwards`."""
        return self.forwards if self.output_difference(found, expected) else self.backwards


def gradient_of(name: str) -> str:
    """What sentences call the gradient of a tensor on trial."""
    return f"the gradient of {name}"


def _handing_on(call: FunctionCall) -> FunctionCall:
    return replace(call, writes=False) if call.writes else call


def _outputs(call: FunctionCall, tensors: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """The outputs with their names; a function that writes to its arguments gets copies in the same layouts."""
    given = [strided_copy(tensor) for tensor in tensors] if call.writes else tensors
    return outputs_of(_handing_on(call).called(given))
