"""Slopes judged at θ and, those that are not right there, at points beside it, since θ may lie on a kink."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch_gradcheck.contract.outcome import Raised, attempted
from torch_gradcheck.contract.problem_trial import ProblemTrial
from torch_gradcheck.contract.slopes import Slope, Verdict
from torch_gradcheck.objective.perturbation import RandomDirection

BESIDE = (1e-2, 1e-3)
"""How far from θ the other points are, relative to the size of every number."""

Slopes = Mapping[str, Slope]
"""The name of what moves → its slope."""


def judged_beside(trial: ProblemTrial, at: Callable[[Collection[str]], Slopes], names: Collection[str]) -> Slopes:
    """The slopes of all names: right ones as they are somewhere, wrong ones as they are at two points at least.

    Args:
        trial: its tensors move.
        at: judges the slopes of some names at what the tensors hold.
        names: of all slopes.
    """
    found = [at(names)]
    for distance in BESIDE:
        open_ones = [name for name in names if not any(each[name].verdict is Verdict.RIGHT for each in found)]
        if open_ones:
            there = attempted(lambda: _there(trial, at, open_ones, distance))  # noqa: B023  # called at once
            found += [] if isinstance(there, Raised) else [{**found[0], **there}]
    return {name: _of_all([each[name] for each in found]) for name in names}


def _there(
    trial: ProblemTrial, at: Callable[[Collection[str]], Slopes], names: Collection[str], distance: float
) -> Slopes:
    direction = RandomDirection(trial.tensors, trial.problem.request.seed)
    with direction.at(distance):
        return at(names)


def _of_all(slopes: list[Slope]) -> Slope:
    """What the slopes of one name at several points say together."""
    right = [slope for slope in slopes if slope.verdict is Verdict.RIGHT]
    wrong = [slope for slope in slopes if slope.verdict is Verdict.WRONG]
    if right:
        return right[0]
    return wrong[0] if len(wrong) > 1 else slopes[0]._replace(verdict=Verdict.UNKNOWN)
