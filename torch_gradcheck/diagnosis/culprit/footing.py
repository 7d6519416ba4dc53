"""What the error of wrong coordinates is followed by: J recorded at θ, and how its calls move along each of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.recorded_run import Run
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner
from torch_gradcheck.diagnosis.culprit.tangents import Motion, Tangents, WrongCoordinate
from torch_gradcheck.objective.objective import Objective

MOST_RUNS = 4000
"""How many runs of single modules the search may take."""


class Measures(NamedTuple):
    """What a search takes from the check before it.

    Attributes:
        step: of the differences of calls, in units of each coordinate.
        noise: of J that calls make out of sight, by rounding to a lower precision.
        accumulated: whether J runs its backward itself.
    """

    step: float
    noise: float
    accumulated: bool


class Footing:
    """J recorded along some wrong coordinates, and at θ.

    Args:
        objective: J.
        wrong: the coordinates.
        measures: see `Measures`.

    Attributes:
        wrong: the coordinates.
        runner: runs calls alone.
        motions: of the calls along each coordinate; None where it is not known.
        run: the recorded run.
    """

    def __init__(self, objective: Objective, wrong: Sequence[WrongCoordinate], measures: Measures) -> None:
        self.wrong = wrong
        self.runner = CallRunner(objective, wrong, MOST_RUNS, measures.noise)
        self.motions = [Motion.along(each, measures.step * each.unit, objective) for each in wrong]
        moving = frozenset[tuple[int, int]]().union(*(each.roots for each in self.motions if each is not None))
        self.run = Run.of(objective, wrong, measures.accumulated, moving)

    @cached_property
    def tangents(self) -> list[dict[RecordedCall, Tangents] | None]:
        """Those of the calls of the run along each coordinate; None where J is made of other calls beside θ."""
        return [None if motion is None else motion.of(self.run.calls) for motion in self.motions]
