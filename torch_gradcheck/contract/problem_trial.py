"""The function on trial in the precision of a check by differences: lent as J, whose slopes can be differenced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from torch_gradcheck.borrowing.loan import lend
from torch_gradcheck.contract.comparison import Allowance, allowance
from torch_gradcheck.contract.draws import draws_in_backward
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.objective import evaluation_of
from torch_gradcheck.objective.perturbation import Direction
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.mode import PrecisionMode

PRECISIONS = (torch.float64, torch.float32)
"""The precisions in which the function runs as it is, casts not raised, under the caller's own default dtype."""


@dataclass(frozen=True)
class ProblemTrial(Trial):
    """What the entries of the contract try, those among them that differentiate.

    Attributes:
        problem: J, lent; `problem.objective` is J after its preflight.
        proven: the names of the rows whose gradient is right.
        has_mistake: the gradient of a row is wrong.
    """

    problem: Problem
    proven: frozenset[str] = frozenset()
    has_mistake: bool = False

    @property
    def model(self) -> nn.Module:
        """See `Trial`."""
        return self.problem.model

    @property
    def theta(self) -> Theta:
        """See `Trial`."""
        return self.problem.theta

    @property
    def seed(self) -> int:
        """See `Trial`."""
        return self.problem.request.seed

    @property
    def dtype(self) -> torch.dtype:
        """See `Trial`."""
        return self.problem.request.dtype

    @property
    def precisions(self) -> Sequence[torch.dtype]:
        """See `Trial`."""
        return PRECISIONS

    @property
    def is_candidate(self) -> bool:
        """See `Trial`."""
        return False

    def as_it_is(self, dtype: torch.dtype, run: Callable[[], None]) -> None:
        """See `Trial`; lent once more where the check has another precision. The default dtype is the caller's."""
        problem = self.problem
        with _DefaultDtype(problem.default_dtype):
            if dtype is problem.request.dtype:
                with problem.objective.evaluation_as_it_is():
                    run()
                return
            with (
                lend(self.model, self.loss.holders, "keep", dtype, self.seed) as borrowed,
                evaluation_of(borrowed),
            ):
                torch.set_default_dtype(problem.default_dtype)  # the loan puts its own back in the end
                run()

    @cached_property
    def allowance(self) -> Allowance:
        """See `Trial`."""
        request = self.problem.request
        return allowance(self.first, self.cotangents(self.first.outputs), request.tolerance, request.dtype)

    def evaluation(self) -> AbstractContextManager[None]:
        """See `Trial`."""
        return self.problem.objective.regime()

    def moved(self, direction: Direction, distance: float) -> AbstractContextManager[None]:
        """See `Trial`."""
        return direction.at(distance)

    def held_regime(self, mode: PrecisionMode | None = None) -> AbstractContextManager[None]:
        """`regime` with the values that J holds, if it holds any.

        Args:
            mode: raises casts to a lower precision; None raises them only where J needs that.
        """
        self.restore()
        return self.problem.objective.regime(mode, self.problem.objective.held)

    def cotangent(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """See `Trial`."""
        return self.loss.cotangent(position, output)

    @property
    def has_other_draws(self) -> bool:
        """See `Trial`."""
        return not self.problem.objective.random_state.is_empty

    def earlier_difference(self) -> str:
        """See `Trial`.

        These backwards started from the random state of J, which a backward that draws moves on, before any call of
        the contract.
        """
        found = self.problem.repeated.difference
        if found is None:
            return ""
        name = self.theta[found.worst].name
        words = (
            f"two equal backwards differ by {found.spread:.1e} of the largest entry of the gradient of {name}, of "
            f"which {found.allowed:.0e} could be rounding"
        )
        if draws_in_backward(self):
            words += ": the backward draws random numbers, and gives the same from the same random state only"
            return words + self.backwards
        is_first = len(found.alike) > 2 and found.alike[1:, 1:].all()
        return words + (": the first one differs from the later ones" if is_first else "") + self.backwards


class _DefaultDtype:
    """Another default dtype inside the block."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._before = dtype, torch.get_default_dtype()

    def __enter__(self) -> None:
        torch.set_default_dtype(self._dtype)

    def __exit__(self, *exception: object) -> None:
        torch.set_default_dtype(self._before)
