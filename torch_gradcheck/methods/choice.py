"""Chooses between the exact and the projected method, and runs the one chosen.

The work that a difference at every coordinate would take is read off the operations of J, never off a clock: the same
call gives the same report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from torch_gradcheck.engines.traced.engine import worth_tracing
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.beyond_rounding import beyond_rounding
from torch_gradcheck.methods.directional.kinks import reconsidered
from torch_gradcheck.methods.exact import exact_notes, exact_trials
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.methods.projected.method import projected_notes, projected_trials
from torch_gradcheck.methods.projected.rows import projected_row
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.preflight import check_unchanged
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.reporting.words import duration
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.verdicts.rows import compared_row
from torch_gradcheck.verdicts.trial import ParameterTrial

Trials = dict[int, ParameterTrial]
"""Position in θ → what was found of that parameter's gradient."""


class Method(NamedTuple):
    """One way to try gradients against J.

    Attributes:
        trials: every checked parameter tried, in the order of θ, by position.
        row: from a trial to the parameter's row, at a tolerance.
        notes: what the reader of these rows should know of the method, a sentence each, "" for nothing.
    """

    trials: Callable[[Problem, Mapping[int, AnalyticGradient], ProgressBar], Trials]
    row: Callable[[ThetaEntry, ParameterTrial, float], ParameterReport]
    notes: Callable[[Problem, Sequence[ParameterReport]], list[str]]


METHODS = {
    "exact": Method(exact_trials, compared_row, exact_notes),
    "projected": Method(projected_trials, projected_row, projected_notes),
}

METHOD_NAMES = ("auto", *METHODS)
"""The names that `method=` may be."""

LONG = 10.0
"""The longest time in seconds that `"auto"` spends on the exact method, as estimated."""

SECONDS_AN_OPERATION = 5e-6
"""The least time that an operation of an eager evaluation takes, in seconds."""

SECONDS_AN_ENTRY = 1e-9
"""The time that each entry of its result adds, in seconds: 1 ms for a million entries."""


@dataclass(frozen=True)
class MethodChoice:
    """The name of a method, and a sentence on why where it is not the one that was to be expected."""

    name: str
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        """The method itself."""
        return METHODS[self.name]


def run_method(problem: Problem, gradients: Mapping[int, AnalyticGradient]) -> tuple[MethodChoice, Trials]:
    """Tries the gradients by the method that was asked for.

    Raises:
        NonDeterministicLossError: J(θ) is another number afterwards.
    """
    choice = _chosen(problem)
    trials = choice.method.trials(problem, gradients, problem.progress)
    trials = reconsidered(problem, gradients, trials, problem.progress)
    trials = beyond_rounding(problem, gradients, trials)
    check_unchanged(problem.objective)
    return choice, trials


def _chosen(problem: Problem) -> MethodChoice:
    """The method that `"auto"` means for this J; any other as it was asked for."""
    if problem.request.method != "auto":
        return MethodChoice(problem.request.method)
    if not worth_tracing(2 * problem.theta.coordinates, len(problem.theta.checked)):
        return MethodChoice("exact")
    seconds = _seconds_of_differences(problem)
    if seconds <= LONG:
        return MethodChoice("exact")
    return MethodChoice(
        "projected",
        (
            f"projected method, since differences at all {problem.theta.coordinates:,} coordinates would take about "
            f'{duration(seconds)} (estimated from the operations of J); method="exact" does so all the same',
        ),
    )


def _seconds_of_differences(problem: Problem) -> float:
    """The time of two evaluations of J for every coordinate, from the record of J if there is one."""
    theta = problem.theta
    from_record = {position: problem.engine.seconds_each(position) for position in theta.checked}
    eager = _seconds_of_evaluation(problem.objective) if None in from_record.values() else 0.0
    each = {position: eager if seconds is None else seconds for position, seconds in from_record.items()}
    return sum(2 * theta[position].coordinates * seconds for position, seconds in each.items())


def _seconds_of_evaluation(objective: Objective) -> float:
    with CountingMode() as counted:
        objective.value()
    return float(counted.operations * SECONDS_AN_OPERATION + counted.entries * SECONDS_AN_ENTRY)


class CountingMode(DispatchMode):
    """Counts the operations of an evaluation, and the entries of what they return."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        self.entries += sum(x.numel() for x in _flat(result) if isinstance(x, Tensor))
        return result


def _flat(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, list | tuple) else (result,)
