"""Names the compiler as the culprit: where compiled code gives a wrong gradient and eager autograd does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_compiled_code import Backward
from torch_gradcheck.gradients.compiled_parts import CompiledPart
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.verdicts.trial import ParameterTrial

SHARE = 0.1
"""A part makes the mistake if, compiled alone, it moves the wrong entry by more than 10 % of what all parts do."""

MOST_PARTS = 64
"""How many compiled parts are compiled alone, one run of J each, at most."""


def compiler_at_fault(
    problem: Problem, wrong: Sequence[WrongCoordinate], eager_is_right: bool
) -> tuple[str | None, tuple[str, ...]]:
    """The innermost module whose compiled backward is wrong, None where it cannot be told, and sentences on it.

    Args:
        problem: J, with a backward of compiled code on trial.
        wrong: entries that the compiled backward gives another gradient for than eager autograd; at least one.
        eager_is_right: eager autograd's gradient of these entries is right.
    """
    backward = problem.backward
    guilty = _innermost(_guilty(backward, problem.theta, wrong))
    backends = list(dict.fromkeys(part.backend for part in guilty or backward.parts))
    makes = f"the compiler ({listed(backends)}) makes the mistake, in the backward of"
    eager = _of_eager(backward, problem.theta, wrong[0], eager_is_right)
    if not guilty:
        together = listed([part.words for part in backward.parts])
        return None, (f"{makes} {together} compiled together; compiled alone, none of them makes it; {eager}",)
    culprit = guilty[-1]  # gradients pass the last one first
    also = [f"besides, the compiled backward of {part.words} is wrong" for part in reversed(guilty[:-1])]
    return culprit.name, (f"{makes} {culprit.words}; {eager}", *also)


def _guilty(backward: Backward, theta: Theta, wrong: Sequence[WrongCoordinate]) -> list[CompiledPart]:
    """The parts that make the mistake when they alone are compiled, in the order in which J calls them."""
    if len(backward.parts) == 1:
        return list(backward.parts)
    guilty = []
    for part in backward.parts[:MOST_PARTS]:
        alone = backward.through(part)
        if alone is not None and any(_moves(backward, alone, theta, each) for each in wrong):
            guilty.append(part)
    return guilty


def _moves(backward: Backward, alone: Mapping[int, AnalyticGradient], theta: Theta, wrong: WrongCoordinate) -> bool:
    """Whether a part compiled alone moves a gradient as all parts do, or a large share of the way."""
    position = _position(theta, wrong)
    eager = _at(backward.eager[position], wrong)
    moved, by_all = _at(alone[position], wrong) - eager, _at(backward.gradients[position], wrong) - eager
    return not abs(moved) <= SHARE * abs(by_all)


def _innermost(parts: Sequence[CompiledPart]) -> list[CompiledPart]:
    """Those that contain no other of them: when a module is compiled, what it calls is compiled with it."""
    return [part for part in parts if not any(_is_inside(other, part) for other in parts)]


def _is_inside(part: CompiledPart, other: CompiledPart) -> bool:
    if part is other or other.module is None or part.module is other.module:
        return False
    if part.module is None:
        return part.name == other.name or part.name.startswith(f"{other.name}." if other.name else "")
    return any(module is part.module for module in other.module.modules())


def _of_eager(backward: Backward, theta: Theta, wrong: WrongCoordinate, is_right: bool) -> str:
    """The sentence on eager autograd at one entry."""
    position = _position(theta, wrong)
    index, part = wrong.entry.locate(wrong.coordinate)
    place = f"{wrong.entry.name}{list(index) if index else ''}{f' ({part})' if part else ''}"
    eager = f"eager autograd's gradient of {place}, {_at(backward.eager[position], wrong):.6e},"
    compiled = f"compiled code gives {wrong.analytic:.6e}"
    return f"{eager} is right, {compiled}" if is_right else f"{eager} is wrong in another way, {compiled}"


def _position(theta: Theta, wrong: WrongCoordinate) -> int:
    return next(position for position, entry in enumerate(theta) if entry is wrong.entry)


def _at(gradient: AnalyticGradient, wrong: WrongCoordinate) -> float:
    return float(gradient.values[wrong.coordinate])


def on_masked(problem: Problem, rows: Sequence[ParameterReport], trials: Mapping[int, ParameterTrial]) -> list[str]:
    """The note on gradients that compiled code gets right and eager autograd does not; none without such.

    Args:
        problem: J, and the backward on trial if gradients were not given.
        rows: one a parameter, in the order of θ.
        trials: the trial of every checked parameter, by position.
    """
    if problem.request.gradients is not None or not problem.backward.parts:
        return []
    backward, tolerance = problem.backward, problem.request.tolerance
    masked = [
        rows[position].name
        for position, trial in trials.items()
        if rows[position].status is Status.MATCH
        and _differ(backward.eager[position].values, backward.gradients[position].values, trial, tolerance)
    ]
    if not masked:
        return []
    return [
        f"eager autograd gives a wrong gradient for {listed(masked)}, which compiled code does not: it is right only "
        "where the model is compiled"
    ]


def _differ(
    eager: Floats,
    compiled: Floats,
    trial: ParameterTrial,
    tolerance: float,
) -> bool:
    off = trial.at(np.abs(eager - compiled))
    size = trial.at(np.abs(eager) + np.abs(compiled))
    return bool(np.any(~(off <= tolerance * size + 2 * trial.results.error_bar)))
