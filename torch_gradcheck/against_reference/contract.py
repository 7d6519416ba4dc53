"""The contract of a candidate: its entries tried on the candidate as it is, in its own precision.

Two right runs of a kernel, in two memory layouts say, may differ by what rounding does to each of them. How much that
is, the comparison with the reference has measured, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.against_reference.equal_runs import Apart, difference_in_words, other_order, told_of
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.pair import Pair
from torch_gradcheck.against_reference.runs.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.runs.computation import FunctionComputation
from torch_gradcheck.against_reference.runs.sides import lent
from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Borrowed, Start
from torch_gradcheck.contract.comparison import SPREADS, Allowance, largest
from torch_gradcheck.contract.entries import contract_of
from torch_gradcheck.contract.outcome import UNREPEATABLE, failed, not_applicable
from torch_gradcheck.contract.trial import Trial, gradient_of
from torch_gradcheck.objective.function_outputs import drawn
from torch_gradcheck.objective.objective import evaluation_of
from torch_gradcheck.objective.perturbation import Direction
from torch_gradcheck.objective.theta import Theta, theta_of
from torch_gradcheck.precision.dtypes import epsilon, is_inexact
from torch_gradcheck.reporting.facts import ContractEntry, ContractStatus, Role

BY_COMPARISON = ("layouts", "needs_input_grad", "undefined_grads", "vmap")
"""The entries that compare runs which should give the same."""

MORE_RUNS = 5
"""Equal runs that are taken once more where such an entry fails."""

BOTH = 2.0
"""Each of two runs may be off by an error bar."""

UNITS = 4.0
"""Two runs may always be this many units in the last place of their largest entry apart: sums of two rounded terms."""

UNMEASURED = 32.0
"""The same where the reference's gradient is wrong, and so shows nothing of what rounding does to the right one."""


def contract_of_candidate(
    pair: Pair, verdicts: Sequence[Judged], unmeasured: Collection[str], apart: Sequence[Apart]
) -> list[ContractEntry]:
    """Every entry of the contract, tried on the candidate in a loan of its own; none where it is a model under a loss.

    Args:
        pair: of the candidate.
        verdicts: on its tensors, with what rounding may do to each.
        unmeasured: the names of those of which the reference has no right gradient.
        apart: its tensors in which equal runs of it differed.
    """
    own, request = pair.candidate, pair.request
    if not isinstance(own, FunctionComputation):
        return []
    plain = replace(own, loss=own.loss.in_any_memory())  # the layouts are for the entries to choose
    autocast = CallersAutocast()
    with lent(plain, request, Start(values=pair.counterparts.moved)) as borrowed:
        theta = theta_of(plain.model, request.include, request.exclude, plain.loss.variables)
        candidate = LentCandidate(plain.model, theta, borrowed, autocast)
        measured = Measured.by(verdicts, unmeasured, request.tolerance)
        trial = CandidateTrial(plain.loss, candidate, request.seed, measured, apart)
        return _beside_equal_runs(trial, contract_of(trial))


def _beside_equal_runs(trial: CandidateTrial, entries: list[ContractEntry]) -> list[ContractEntry]:
    """The entries, none failed for runs that differ where equal ones do so as well: of a race that is lost at times."""
    if not [each for each in entries if _fails_by_comparison(each)]:
        return entries
    differences = [trial.difference(trial.run(), trial.first) for _ in range(MORE_RUNS)]
    words = next(filter(None, differences), "")
    if not words:
        return entries
    found = failed("repeatable", f"of {MORE_RUNS} more equal calls, one gives another result than the first: {words}")
    others = [not_applicable(each.name, UNREPEATABLE) if _fails_by_comparison(each) else each for each in entries]
    return [found if each.name == found.name else each for each in others]


def _fails_by_comparison(entry: ContractEntry) -> bool:
    return entry.status is ContractStatus.FAILED and entry.name in BY_COMPARISON


@dataclass(frozen=True)
class Measured(Allowance):
    """What two right runs of a candidate may differ by, as the comparison with its reference has measured it.

    Attributes:
        bars: what sentences call a tensor → the largest error bar of an entry, and that as a share of the largest one.
    """

    bars: Mapping[str, tuple[float, float]]

    @classmethod
    def by(cls, verdicts: Sequence[Judged], unmeasured: Collection[str], tolerance: float) -> Measured:
        """The error bars of all outputs and gradients; see `contract_of_candidate`."""
        bars = {_called(each): _bar_and_share(each, each.compared.entry.name in unmeasured) for each in verdicts}
        return cls(tolerance, 0.0, bars)

    def of_tensor(self, tensor: torch.Tensor | None, name: str) -> float:
        """In the unit of a tensor of this name, which need not be as large as the one that was measured."""
        bar, share = self.bars.get(name, max(self.bars.values(), default=(0.0, 0.0)))
        return BOTH * max(bar, share * largest(tensor))

    def of(self, tensor: torch.Tensor | None, spread: float = 0.0, name: str = "", terms: float = 0.0) -> float:
        """See `Allowance.of`."""
        if tensor is not None and not is_inexact(tensor):
            return 0.0
        share = self.tolerance if tensor is None else max(self.tolerance, other_order(tensor.dtype))
        rounded = UNITS * epsilon(tensor.dtype) * terms if tensor is not None else 0.0
        return max(self.of_tensor(tensor, name), share * largest(tensor), SPREADS * spread, rounded)


@dataclass(frozen=True)
class LentCandidate:
    """A candidate in a loan that leaves every tensor in its own dtype."""

    model: nn.Module
    theta: Theta
    borrowed: Borrowed
    autocast: CallersAutocast

    def evaluation(self) -> AbstractContextManager[None]:
        """The regime of one run, forward and backward, under the caller's autocast."""
        return _Under(self.autocast, evaluation_of(self.borrowed))


@dataclass(frozen=True)
class CandidateTrial(Trial):
    """What the entries of the contract try of a candidate.

    Attributes:
        lent: the candidate.
        first_seed: see `Trial.seed`.
        measured: what rounding may do.
        apart: see `Trial.earlier_difference`.
    """

    lent: LentCandidate
    first_seed: int
    measured: Measured
    apart: Sequence[Apart] = ()

    @property
    def model(self) -> nn.Module:
        """See `Trial`."""
        return self.lent.model

    @property
    def theta(self) -> Theta:
        """See `Trial`."""
        return self.lent.theta

    @property
    def seed(self) -> int:
        """See `Trial`."""
        return self.first_seed

    @cached_property
    def dtype(self) -> torch.dtype:
        """See `Trial`."""
        return max([self.theta[position].own_dtype for position in self.theta.checked], key=epsilon)

    @property
    def precisions(self) -> Sequence[torch.dtype]:
        """See `Trial`: its own, and no other one."""
        return (self.dtype,)

    @property
    def is_candidate(self) -> bool:
        """See `Trial`."""
        return True

    def as_it_is(self, dtype: torch.dtype, run: Callable[[], None]) -> None:  # noqa: ARG002 - there is one
        """See `Trial`."""
        with self.lent.evaluation():
            run()

    @property
    def allowance(self) -> Allowance:
        """See `Trial`."""
        return self.measured

    def evaluation(self) -> AbstractContextManager[None]:
        """See `Trial`."""
        return self.lent.evaluation()

    def moved(self, direction: Direction, distance: float) -> AbstractContextManager[None]:
        """See `Trial`."""
        return _Moved(self.lent.borrowed, direction.at(distance))

    def cotangent(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """See `Trial`: as `Upstream` has it, rounded to the dtype of the output and 0 where that is infinite."""
        key = (position, output.shape, output.dtype, output.device)
        if key not in self._cotangents:  # drawn once, so that no run of the function is seen to draw
            v = drawn((self.first_seed + position) % 2**63, output)
            infinite = torch.isinf(output.detach().to("cpu").to(v.dtype))  # there float8 can be asked
            self._cotangents[key] = torch.where(infinite, 0, v).to(output.dtype).to(output.device)
        return self._cotangents[key].clone()

    @cached_property
    def _cotangents(self) -> dict[tuple[Any, ...], torch.Tensor]:
        return {}

    @property
    def has_other_draws(self) -> bool:
        """See `Trial`: every run of a candidate starts from one state, and those before as well."""
        return False

    def earlier_difference(self) -> str:
        """See `Trial`."""
        worst = told_of(self.apart)
        if worst is None:
            return ""
        return difference_in_words(self.apart) + (self.forwards if worst.entry.role is Role.OUTPUT else self.backwards)


class _Under:
    """An evaluation under the caller's autocast."""

    def __init__(self, autocast: CallersAutocast, evaluation: AbstractContextManager[None]) -> None:
        self._autocast, self._evaluation = autocast, evaluation

    def __enter__(self) -> None:
        self._evaluation.__enter__()
        self._on = self._autocast.on()

    def __exit__(self, *exception: object) -> None:
        self._on.__exit__(*exception)  # type: ignore[arg-type]
        self._evaluation.__exit__(*exception)  # type: ignore[arg-type]


class _Moved:
    """The lent tensors moved inside the block; there every run starts from what they hold."""

    def __init__(self, borrowed: Borrowed, moving: AbstractContextManager[object]) -> None:
        self._borrowed, self._moving = borrowed, moving

    def __enter__(self) -> None:
        self._moving.__enter__()
        self._borrowed.take_for_first()

    def __exit__(self, *exception: object) -> None:
        self._moving.__exit__(*exception)  # type: ignore[arg-type]
        self._borrowed.take_for_first()


def _called(judged: Judged) -> str:
    entry = judged.compared.entry
    return entry.name if entry.role is Role.OUTPUT else gradient_of(entry.name)


def _bar_and_share(judged: Judged, is_unmeasured: bool) -> tuple[float, float]:
    """The largest error bar of a tensor; and relative to its largest entry, for runs in which that is another one."""
    each, bar = judged.compared, _largest(judged.bars.entry)
    least = (UNMEASURED if is_unmeasured else UNITS) * each.epsilon / BOTH
    size = _largest(each.right)
    return max(bar, least * _largest(each.candidate[0])), max(bar / size if size else 0.0, least)


def _largest(values: Floats) -> float:
    """The largest finite one; infinite where none is."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.max(finite, initial=0.0)) if finite.size or not values.size else float("inf")
