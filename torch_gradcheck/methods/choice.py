"""Chooses between the exact and the projected method, by the work that a difference at every coordinate would take.

The work is read off the operations of J, never off a clock: the same call gives the same report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_gradcheck.engines.traced.engine import worth_tracing
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.problem import Numerical
from torch_gradcheck.methods.projected.method import Projected
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.reporting.words import duration
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.trial import ParameterTrial

LONG = 10.0
"""Seconds from which on the exact method is not what `"auto"` means."""

SECONDS_AN_OPERATION = 5e-6
"""What an operation of an eager evaluation takes at least ..."""

SECONDS_AN_ENTRY = 1e-9
"""... and what every entry that it writes adds."""


@dataclass(frozen=True)
class MethodChoice:
    """The method, and a sentence on why where it is not the one that was to be expected."""

    method: str
    notes: tuple[str, ...] = ()


def chosen_method(asked: str, objective: Objective, theta: Theta, numerical: Numerical) -> MethodChoice:
    """What `"auto"` means for this J; any other method as it was asked for."""
    if asked != "auto":
        return MethodChoice(asked)
    if not worth_tracing(2 * theta.coordinates, len(theta.checked)):
        return MethodChoice("exact")
    seconds = _seconds_of_differences(objective, theta, numerical)
    if seconds <= LONG:
        return MethodChoice("exact")
    return MethodChoice(
        "projected",
        (
            f"projected method: differences at all {theta.coordinates:,} coordinates would take about "
            f'{duration(seconds)}, by the operations of J; method="exact" takes that time',
        ),
    )


def _seconds_of_differences(objective: Objective, theta: Theta, numerical: Numerical) -> float:
    """What two evaluations of J for every coordinate would take, from the record of J if there is one."""
    from_record = {position: numerical.engine.seconds_each(position) for position in theta.checked}
    eager = _seconds_of_evaluation(objective) if None in from_record.values() else 0.0
    each = {position: eager if seconds is None else seconds for position, seconds in from_record.items()}
    return sum(2 * theta[position].coordinates * seconds for position, seconds in each.items())


def _seconds_of_evaluation(objective: Objective) -> float:
    with CountingMode() as counted:
        objective.value()
    return float(counted.operations * SECONDS_AN_OPERATION + counted.entries * SECONDS_AN_ENTRY)


class CountingMode(TorchDispatchMode):
    """Counts the operations of an evaluation, and the entries of what they return."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see PrecisionMode

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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


def run_method(
    objective: Objective,
    theta: Theta,
    asked: Request,
    numerical: Numerical,
    gradients: dict[int, AnalyticGradient],
    progress: ProgressBar,
) -> tuple[MethodChoice, dict[int, ParameterTrial]]:
    """Which method it was, and every checked parameter tried by it, by position in θ."""
    chosen = chosen_method(asked.method, objective, theta, numerical)
    if chosen.method == "exact":
        return chosen, numerical.trials(gradients, progress)
    return chosen, Projected(objective, theta, asked, numerical, gradients, progress).trials()
