"""Tells a gradient that was lost by mistake from one that stops on purpose: does the mismatch vanish where J is held?

Where the graph of J is cut somewhere, the gradients found wrong are tried again, against J with all detached values
held. All wrong tensors are moved together: along their errors, where the two slopes differ most, and along random
signs, where any other mistake shows. Tensors that this leaves open are tried in halves. Then each cut is let go in
turn: those without which the mismatch comes back are the ones that matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.richardson import COARSE, Estimates, extrapolated_derivatives
from torch_gradcheck.methods.directional.confirm import LARGEST_MOVE, MOST_TRIED, ONLY
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.directional.motions import Direction, Motion
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.held_values import Cut, HeldValues, in_words
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, ParameterReport
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

MOST_CUTS = 8
"""Of so many cuts it is found out which ones matter; of more, all are named."""

ERROR_BARS_OFF = 3.0
"""A slope of the held J within 3 error bars is that of the gradient."""

SMALL_MOVE = 0.01
"""Held and plain J are compared at 1 % of the tensors' own sizes."""

RESOLVED = 0.01
"""An error bar of at most 1 % of the mismatch: one that stayed would be seen."""


@dataclass(frozen=True)
class StopGradients:
    """Where the graph of a J with wrong gradients is cut, and what holding the values there does to them.

    Attributes:
        cuts: those that matter.
        right: names of the wrong parameters whose gradients are right for the held J.
        others: names of those whose gradients are not.
    """

    cuts: list[Cut]
    right: list[str]
    others: list[str]

    @property
    def notes(self) -> list[str]:
        """The sentence that says what to declare; none where it would not help."""
        if not self.right:
            return []
        of_some = f" of {listed(self.right)}" if self.others else ""
        others = f"; that of {listed(self.others)} is wrong either way" if self.others else ""
        return [
            f"the gradient{of_some} is right if what is {in_words(self.cuts)} is meant to be held, as a deliberate "
            f"stop-gradient: declare it with hold_detached=True{others}"
        ]

    def diagnoses(self, rows: Sequence[ParameterReport], unknown: Sequence[int]) -> dict[int, Diagnosis]:
        """DETACHED for the `unknown` positions whose gradients are those of J with the values held."""
        held = f"dθ is the gradient of J with what is {in_words(self.cuts)} held"
        message = f"{held}: the path through it is lost, unless that is meant"
        detached = Diagnosis(DiagnosisKind.DETACHED, message)
        return {position: detached for position in unknown if rows[position].name in self.right}

    @property
    def place(self) -> str:
        """Where the graph is cut, if that is all of the mistake; "" otherwise, see `Facts.place`."""
        return in_words(self.cuts) if self.right and not self.others else ""

    @property
    def cut_in_words(self) -> str:
        """Where the graph is cut, to be added to the note on the culprit."""
        return f"; the graph is cut: {in_words(self.cuts)}" if self.cuts else ""


NONE = StopGradients([], [], [])


def stop_gradients(problem: Problem, trials: Mapping[int, ParameterTrial]) -> StopGradients:
    """What deliberate stop-gradients would explain; costs an evaluation, and four more where the graph is cut.

    Args:
        problem: J and θ, the model lent.
        trials: those of the parameters whose gradients are wrong, by position in θ.
    """
    if problem.objective.held is not None:
        return NONE
    suspects = {position: trial for position, trial in trials.items() if _has_error(trial)}
    try:
        return _explained(problem, suspects, [problem.theta[position].name for position in trials])
    except Exception:  # whatever J raises where values are held, the verdict on the gradients stands
        return NONE


def _explained(problem: Problem, suspects: Mapping[int, ParameterTrial], wrong: Sequence[str]) -> StopGradients:
    objective, values = problem.objective, HeldValues()
    before = objective.evaluations
    held = objective.holding(values)
    try:
        if not values.values or not suspects:
            return NONE
        trial = _Trial(problem, held, suspects)
        return trial.found(wrong) if trial.holding_matters() else NONE
    finally:
        objective.count(held.evaluations - before)


class _Trial:
    """Gradients that are wrong for J, on trial against the held J."""

    def __init__(self, problem: Problem, held: Objective, suspects: Mapping[int, ParameterTrial]) -> None:
        self._problem, self._held, self._suspects = problem, held, suspects
        self._tried = 0

    def holding_matters(self) -> bool:
        """Whether the held J is another function than J, along the errors."""
        direction, problem = self._errors(sorted(self._suspects)), self._problem
        values = []
        for objective in (problem.objective, self._held):
            directions = Directions(objective, problem.theta, problem.request.seed, problem.progress)
            steps = SMALL_MOVE * directions.reach(direction) * np.array([1.0, -1.0])
            values.append(directions.sampler([direction])(np.zeros(2, dtype=np.int64), steps).values)
        return not all(problem.objective.same(held, plain) for plain, held in zip(*values, strict=True))

    def found(self, wrong: Sequence[str]) -> StopGradients:
        """The findings; `wrong` names all parameters that are wrong."""
        right = {self._problem.theta[position].name for position in self._right(sorted(self._suspects))}
        cuts = self._that_matter()
        return StopGradients(
            cuts, [name for name in wrong if name in right and cuts], [name for name in wrong if name not in right]
        )

    def _right(self, positions: Sequence[int]) -> list[int]:
        """Those of the suspects whose gradients are the held J's."""
        if not positions or self._tried >= MOST_TRIED:
            return []
        self._tried += 1
        if all(self._agrees(direction, positions) for direction in (self._errors(positions), self._signs(positions))):
            return list(positions)
        middle = len(positions) // 2
        return [*self._right(positions[:middle]), *self._right(positions[middle:])] if middle else []

    def _agrees(self, direction: Direction, positions: Sequence[int]) -> bool:
        estimates, slope = self._estimates(self._held, direction), self._slope(direction)
        error_bar = float(estimates.error_bar[0])
        size = sum(self._size_of_slope(direction, position) for position in positions)
        allowed = max(ERROR_BARS_OFF * error_bar, self._problem.request.tolerance * size)
        return error_bar <= RESOLVED and abs(float(estimates.central[0]) - slope) <= allowed

    def _that_matter(self) -> list[Cut]:
        """The cuts that change the slope along the errors, as they are held or not."""
        assert self._held.held is not None
        cuts = self._held.held.cuts
        if len(cuts) > MOST_CUTS:
            return cuts
        direction = self._errors(sorted(self._suspects))
        held = self._estimates(self._held, direction)
        return [cut for cut in cuts if _differ(held, self._estimates(self._without(cut), direction))]

    def _without(self, cut: Cut) -> Objective:
        assert self._held.held is not None
        return self._held.holding(self._held.held.but_for(cut))

    def _estimates(self, objective: Objective, direction: Direction) -> Estimates:
        problem, before = self._problem, objective.evaluations
        directions = Directions(objective, problem.theta, problem.request.seed, problem.progress)
        unit = np.array([LARGEST_MOVE * directions.reach(direction)])
        estimates = extrapolated_derivatives(directions.sampler([direction]), ONLY, unit, problem.noise, COARSE)
        if objective is not self._held:
            self._held.count(objective.evaluations - before)
        return estimates

    def _errors(self, positions: Sequence[int]) -> Direction:
        """Every tensor along its error, so far that its slope is off by 1."""
        return {position: self._motion(position, _error(self._suspects[position])) for position in positions}

    def _signs(self, positions: Sequence[int]) -> Direction:
        """Every tensor along random signs, as far."""
        signs = np.random.default_rng([self._problem.request.seed, len(positions)])
        return {
            position: self._motion(position, signs.choice([-1.0, 1.0], len(self._suspects[position].coordinates)))
            for position in positions
        }

    def _motion(self, position: int, along: Floats) -> Motion:
        trial, entry = self._suspects[position], self._problem.theta[position]
        components = torch.zeros(entry.coordinates, dtype=torch.float64)
        components[torch.from_numpy(np.array(trial.coordinates))] = torch.from_numpy(along / np.linalg.norm(along))
        return Motion(1.0 / float(np.linalg.norm(_error(trial))), components)

    def _slope(self, direction: Direction) -> float:
        """The slope that the gradients on trial predict."""
        return sum(
            scale * float(np.nan_to_num(self._suspects[position].analytic) @ self._tried_part(components, position))
            for position, (scale, components) in direction.items()
        )

    def _size_of_slope(self, direction: Direction, position: int) -> float:
        scale, components = direction[position]
        analytic = np.nan_to_num(self._suspects[position].analytic)
        return float(scale * np.linalg.norm(analytic) * np.linalg.norm(self._tried_part(components, position)))

    def _tried_part(self, components: torch.Tensor, position: int) -> Floats:
        return self._suspects[position].at(components.numpy())


def _error(trial: ParameterTrial) -> Floats:
    """By how much each entry is off, 0 where it is not wrong or no number."""
    off = np.asarray(trial.analytic - trial.results.numeric)
    return np.where((trial.results.outcome == Outcome.MISMATCH) & np.isfinite(off), off, 0.0)


def _has_error(trial: ParameterTrial) -> bool:
    return bool(np.any(_error(trial))) and bool(np.all(np.isfinite(trial.analytic)))


def _differ(held: Estimates, free: Estimates) -> bool:
    """Whether two slopes are resolved and are not one; or the second is not there, since J jumps."""
    off = abs(float(held.central[0]) - float(free.central[0]))
    bars = float(held.error_bar[0]) + float(free.error_bar[0])
    return not off <= max(ERROR_BARS_OFF * bars, RESOLVED)
