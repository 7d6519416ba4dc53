"""Tries the entries that kinks excuse along joint directions, in which J has one slope although each has two.

A gradient of composed functions need not be one of J at a kink of several of them: autograd gives relu(x) − relu(−x) the
slope 0 at 0, and a Function may choose another slope there than torch does. None of that is a mistake. So a gradient is
called wrong only if all of this holds:

1. it is not what the formulas of torch give for the operations of J, and that gradient has J's slope along the direction;
2. not only J but every quantity on its way from θ has one slope along the direction, on both sides of θ and at points
   beside it, where other pieces of these functions meet: no operation is at a kink that the direction crosses;
3. differences of J itself, by many steps, contradict the slope of the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.richardson import COARSE
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.methods.directional.confirm import LARGEST_MOVE
from torch_gradcheck.methods.directional.directions import Direction, Directions, Motion
from torch_gradcheck.methods.directional.slope_check import contradicts, entry_check_of
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import flat_values
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.verdicts.entry_check import Outcome, rounding_of
from torch_gradcheck.verdicts.joint_kinks import joint_directions, kinked, nearest_allowed
from torch_gradcheck.verdicts.judge import judge_each
from torch_gradcheck.verdicts.refine import LOW_PRECISION
from torch_gradcheck.verdicts.trial import ParameterTrial

POINTS = 8
"""At how many random points beside θ the pieces of J are looked at."""

FIRST_POINT = 200
"""Number of the random direction to the first of them; other numbers are taken."""

DISTANCE = 2e-6
"""How far these points are from θ, relative to the size of its tensors."""

STEP = DISTANCE / 64
"""Relative step by which quantities are differenced: beside θ it stays on one piece."""

ALIKE = 0.02
"""Two slopes of a quantity are the same where they differ by at most 2 % of themselves."""

CURVED = 1e-4
"""... or by this share of the largest slope in the same tensor: 50 times what a curvature of 1 makes of `DISTANCE`."""

ROUNDINGS = 64.0
"""... or by this many machine epsilons of the largest number in the tensor, divided by the step."""

MOST_ENTRIES = 2**20
"""The largest number of entries in tensors with kinks that are tried together."""

MOST_ALONE = 8
"""How many tensors are tried one by one, where nothing is found along directions through all of them."""


def tried_jointly(
    problem: Problem,
    gradients: Mapping[int, AnalyticGradient],
    trials: Mapping[int, ParameterTrial],
    progress: ProgressBar,
) -> dict[int, ParameterTrial]:
    """The trials, with entries made MISMATCH that J contradicts along a direction through several kinks.

    Costs nothing where J has no kink at θ, and a record of J where the gradient is then that of torch's formulas.

    Args:
        problem: J, θ and the options.
        gradients: the gradients on trial, by position in θ.
        trials: of these, coordinate by coordinate.
        progress: advanced at every evaluation.
    """
    found = dict(trials)
    suspected = {at: trial for at, trial in trials.items() if _may_hide(trial, gradients[at])}
    if not suspected or problem.noise.epsilon > LOW_PRECISION or problem.record is None:
        return found
    try:
        return found | JointKinks(problem, problem.record, suspected, gradients, progress).judged()
    except Untraceable:
        return found


def _may_hide(trial: ParameterTrial, gradient: AnalyticGradient) -> bool:
    """Whether kinks may have excused entries: where one is wrong anyway, or the backward is not one function, not."""
    results = trial.results
    if not np.isfinite(trial.analytic).all() or not np.isfinite(gradient.error_bar):
        return False
    if np.any(results.outcome == Outcome.MISMATCH):
        return False
    return bool(np.any(results.outcome != Outcome.MATCH) or (results.bent is not None and np.any(results.bent)))


class JointKinks:
    """The gradients of several tensors with kinks at θ, tried along directions through all of them.

    Args:
        problem: J, θ and the options.
        record: of J.
        trials: of these tensors, by position in θ.
        gradients: on trial, by position.
        progress: advanced at every evaluation.
    """

    def __init__(
        self,
        problem: Problem,
        record: TracedEngine,
        trials: Mapping[int, ParameterTrial],
        gradients: Mapping[int, AnalyticGradient],
        progress: ProgressBar,
    ) -> None:
        self._problem, self._record, self._trials, self._gradients = problem, record, trials, gradients
        self._progress = progress

    def judged(self) -> dict[int, ParameterTrial]:
        """The trials of tensors in which entries are wrong, with these marked."""
        trials, reference = self._trials, self._by_record()
        other = [at for at, trial in trials.items() if self._differs(at, trial.analytic, reference[at]).any()]
        if not other or sum(len(trial.coordinates) for trial in trials.values()) > MOST_ENTRIES:
            return {}
        alone = [(at,) for at in other[:MOST_ALONE]] if len(trials) > 1 else []
        for positions in [tuple(trials), *alone]:
            found = self._contradicted(positions, reference)
            if found:
                return found
        return {}

    def _differs(self, position: int, one: Floats, other: Floats) -> Flags:
        """Entries by which two gradients differ by more than rounding."""
        rounding = rounding_of(one, self._gradients[position].epsilon) + self._gradients[position].error_bar
        tolerance = self._problem.request.tolerance
        return np.asarray(~(np.abs(one - other) <= tolerance * (np.abs(one) + np.abs(other)) + rounding))

    # Pieces of J ---------------------------------------------------------------------------------------------------

    @cached_property
    def _directions(self) -> Directions:
        return Directions(self._problem.objective, self._problem.theta, self._problem.request.seed, self._progress)

    @cached_property
    def _points(self) -> list[Direction]:
        """The directions to points beside θ, in which every tensor moves."""
        scales = {position: DISTANCE * size for position, size in self._directions.sizes.items()}
        return [self._directions.random(FIRST_POINT + k, scales) for k in range(POINTS)]

    @cached_property
    def _beside(self) -> list[dict[int, Floats]]:
        """The gradients of the record at these points."""
        found = []
        for point in self._points:
            with self._directions.at((point, 1.0)):
                found.append(self._by_record())
        return found

    def _by_record(self) -> dict[int, Floats]:
        """The gradient by torch's formulas at what the parameters hold now, at the coordinates that were tried."""
        self._problem.objective.count(1)
        found, theta, epsilon = self._record.gradients(), self._problem.theta, self._problem.noise.epsilon
        return {
            position: analytic_gradient(theta[position], found[position], epsilon).values[trial.coordinates]
            for position, trial in self._trials.items()
        }

    # One direction -------------------------------------------------------------------------------------------------

    def _contradicted(
        self, positions: Sequence[int], reference: Mapping[int, Floats]
    ) -> dict[int, ParameterTrial]:
        """The trials of these tensors that are wrong by one direction through their kinked entries."""
        joined = {at: self._trials[at].analytic for at in positions}
        nearby = np.array([_joined(gradient, positions) for gradient in self._beside])
        on_trial, of_torch = _joined(joined, positions), _joined(reference, positions)
        if not np.isfinite(nearby).all() or not np.isfinite(of_torch).all():
            return {}
        active = np.flatnonzero(kinked(nearby))
        on_trial, of_torch, nearby = on_trial[active], of_torch[active], nearby[:, active]
        theta = _joined({at: self._values(at) for at in positions}, positions)[active]
        more = [of_torch, np.sign(on_trial), np.sign(theta), np.ones(len(active))]
        for unit in joint_directions(on_trial, of_torch, nearby, more) if len(active) else []:
            direction = self._direction(positions, active, unit)
            if self._is_wrong(direction, float(on_trial @ unit), float(nearby[0] @ unit)):
                allowed, wrong = nearest_allowed(on_trial, float(nearby[0] @ unit), unit)
                return self._marked(positions, active[wrong], allowed[wrong], reference)
        return {}

    def _values(self, position: int) -> Floats:
        return flat_values(self._problem.theta[position])[self._trials[position].coordinates]

    def _direction(self, positions: Sequence[int], active: Indices, unit: Floats) -> Direction:
        direction: dict[int, Motion] = {}
        for position, mine, begin in self._parts(positions, active):
            components = torch.zeros(self._problem.theta[position].coordinates, dtype=torch.float64)
            coordinates = self._trials[position].coordinates[active[mine] - begin]
            components[torch.from_numpy(coordinates)] = torch.from_numpy(unit[mine])
            if torch.count_nonzero(components):
                direction[position] = Motion(1.0, components)
        return direction

    def _parts(self, positions: Sequence[int], entries: Indices) -> Iterator[tuple[int, Flags, int]]:
        """Each tensor's position, which of the joined entries are its own, and the number of its first one."""
        begin = 0
        for position in positions:
            end = begin + len(self._trials[position].coordinates)
            yield position, (begin <= entries) & (entries < end), begin
            begin = end

    def _is_wrong(self, direction: Direction, on_trial: float, slope: float) -> bool:
        reach = self._directions.reach(direction)
        return self._has_one_slope(direction, STEP * reach) and self._is_contradicted(
            direction, reach, on_trial, slope
        )

    def _is_contradicted(self, direction: Direction, reach: float, on_trial: float, slope: float) -> bool:
        """Whether J, which has this slope along a direction by its pieces, contradicts the one on trial there."""
        problem, analytic = self._problem, np.array([on_trial])
        sampler, scale = self._directions.sampler([direction]), np.array([reach])
        check = entry_check_of(
            sampler, analytic, LARGEST_MOVE * scale, scale, problem.noise, problem.request.tolerance, COARSE
        )
        results = judge_each(check)
        as_pieces = abs(results.numeric[0] - slope) <= abs(on_trial - slope) / 10
        return contradicts(results, on_trial) and bool(as_pieces)

    def _has_one_slope(self, direction: Direction, step: float) -> bool:
        """Whether every quantity between θ and J has one slope along the direction, at θ and beside it."""
        here = self._quantities()
        ahead, behind = self._quantities((direction, step)), self._quantities((direction, -step))
        if not _alike(_slopes(here, ahead, step), _slopes(behind, here, step), here, step):
            return False
        at_theta = _slopes(behind, ahead, 2 * step)
        for point in self._points:
            ahead, behind = (self._quantities((point, 1.0), (direction, sign * step)) for sign in (1, -1))
            if not _alike(at_theta, _slopes(behind, ahead, 2 * step), here, step):
                return False
        return True

    def _quantities(self, *moves: tuple[Direction, float]) -> list[Tensor]:
        self._problem.objective.count(1)
        with self._directions.at(*moves):
            return self._record.quantities()

    def _marked(
        self, positions: Sequence[int], entries: Indices, allowed: Floats, reference: Mapping[int, Floats]
    ) -> dict[int, ParameterTrial]:
        """The trials with these of the joined entries marked as wrong, and what they should be.

        Entries that the formulas of torch give are wrong only where there are no others.
        """
        joined = {at: self._trials[at].analytic for at in positions}
        as_by_torch = np.concatenate(
            [~self._differs(at, self._trials[at].analytic, reference[at]) for at in positions]
        )[entries]
        keep = ~as_by_torch if not as_by_torch.all() else as_by_torch
        entries, allowed = entries[keep], allowed[keep]
        found: dict[int, ParameterTrial] = {}
        for position, mine, begin in self._parts(positions, entries):
            if mine.any():
                found[position] = _with_wrong(self._trials[position], entries[mine] - begin, allowed[mine])
        return found


def _with_wrong(trial: ParameterTrial, entries: Indices, allowed: Floats) -> ParameterTrial:
    numeric, outcome = np.array(trial.results.numeric), np.array(trial.results.outcome)
    numeric[entries], outcome[entries] = allowed, Outcome.MISMATCH
    return replace(trial, results=replace(trial.results, numeric=numeric, outcome=outcome), jointly=len(entries))


def _joined(gradients: Mapping[int, Floats], positions: Sequence[int]) -> Floats:
    return np.concatenate([gradients[position] for position in positions])


def _slopes(before: Sequence[Tensor], after: Sequence[Tensor], width: float) -> list[Tensor] | None:
    """The difference quotients of quantities; None where they have not the same shapes everywhere."""
    if [x.shape for x in before] != [x.shape for x in after]:
        return None
    # ∞ − ∞, of a mask, is no motion.
    return [torch.where(b == a, torch.zeros_like(b), (a - b) / width) for b, a in zip(before, after, strict=True)]


def _alike(one: list[Tensor] | None, other: list[Tensor] | None, values: Sequence[Tensor], step: float) -> bool:
    """Whether two lists of slopes are the same, up to curvature and to the roundoff of the values they are of."""
    if one is None or other is None or len(one) != len(other):
        return False
    return all([_are_alike(a, b, value, step) for a, b, value in zip(one, other, values, strict=True)])


def _are_alike(one: Tensor, other: Tensor, value: Tensor, step: float) -> bool:
    if not one.numel():
        return True
    larger = torch.maximum(one.abs(), other.abs())
    size = torch.nan_to_num(value.abs(), nan=0.0, posinf=0.0).max()
    roundoff = ROUNDINGS * torch.finfo(torch.float64).eps * size / step
    allowed = ALIKE * larger + CURVED * larger.max() + roundoff
    return bool(((one - other).abs() <= allowed).all())
