"""Looks once more at what was found at kinks of J: entries that a kink excuses, and entries that several kinks accuse.

An accusation by a joint direction: where entries tie for a maximum, J has a kink along each of them, and any gradient
between its two slopes is excused. Along a direction in which they move together J has one slope. A gradient that has
another one there is wrong, if

1. it is not what the formulas of torch give for the operations of J, and that gradient has J's slope;
2. not only J but every quantity between θ and J has one slope along the direction, on both sides of θ and beside it;
3. differences of J itself contradict it, by many steps.

Without the first two a right model would be accused. A Function may choose another slope at its kink than torch does,
and what autograd adds up of such choices need be no slope of J: relu(x) − relu(−x) gets the slope 0 at 0, and is x.
Where that happens along a single coordinate, or entries tie for being selected, an entry is left undecided that is just
what the formulas of torch give, or that is right at points beside θ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.richardson import COARSE
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.untraceable import Strayed, Untraceable
from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.methods.directional.confirm import LARGEST_MOVE
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.directional.motions import Direction, Motion
from torch_gradcheck.methods.directional.quantities import CLOSER, DISTANCE, Quantities
from torch_gradcheck.methods.directional.slope_check import contradicts, entry_check_of
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import Theta, flat_values
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.verdicts.entry_check import Outcome, rounding_of
from torch_gradcheck.verdicts.joint_kinks import joint_directions, kinked, nearest_allowed
from torch_gradcheck.verdicts.judge import judge_each
from torch_gradcheck.verdicts.kinks import NEARBY_GRADIENTS
from torch_gradcheck.verdicts.refine import LOW_PRECISION
from torch_gradcheck.verdicts.trial import ParameterTrial

POINTS = 8
"""At how many random points beside θ the pieces of J are looked at."""

FIRST_POINT = 200
"""Number of the random direction to the first of them; other numbers are taken."""

MOST_ENTRIES = 2**20
"""The largest number of entries in tensors with kinks that are tried together."""

MOST_ALONE = 8
"""How many tensors are tried one by one, where nothing is found along directions through all of them."""

MOST_EXCUSED = 64
"""How many accused entries of a tensor are looked at one by one; where kinks excuse all of them, the rest is, too."""

NOISES = 1e3
"""J jumps by more than this many standard deviations of its noise."""

Trials = Mapping[int, ParameterTrial]
"""Position in θ → what was found of that parameter's gradient."""


def reconsidered(
    problem: Problem, gradients: Mapping[int, AnalyticGradient], trials: Trials, progress: ProgressBar
) -> dict[int, ParameterTrial]:
    """The trials, with entries made MISMATCH or UNDECIDED where several kinks of J meet.

    Costs nothing where J has no kink at θ and nothing is wrong, and little where the gradient is that of torch's
    formulas, as kinks go, or is not, as mistakes do.

    Args:
        problem: J, θ and the options.
        gradients: the gradients on trial, by position in θ.
        trials: of these, coordinate by coordinate.
        progress: advanced at every evaluation.
    """
    found = dict(trials)
    tried = {at: trial for at, trial in trials.items() if _is_of_interest(trial, gradients[at])}
    if not tried or problem.record is None:
        return found
    problem.give_back_freed_memory()
    try:
        kinks = AtKinks(problem, problem.record, tried, gradients, progress)
        if problem.noise.epsilon > LOW_PRECISION:
            return found | kinks.chosen_by_torch()
        found |= kinks.excused()
        return found | kinks.contradicted({at: found[at] for at in tried if not _is_wrong(found[at])})
    except Untraceable:
        return found


def _is_wrong(trial: ParameterTrial) -> bool:
    return bool(np.any(trial.results.outcome == Outcome.MISMATCH))


def _is_of_interest(trial: ParameterTrial, gradient: AnalyticGradient) -> bool:
    """Whether entries were excused or accused, or would have been but for a slope between those of a kink."""
    results = trial.results
    if not np.isfinite(trial.analytic).all() or not np.isfinite(gradient.error_bar):
        return False
    return bool(np.any(results.outcome != Outcome.MATCH) or (results.bent is not None and np.any(results.bent)))


class AtKinks:
    """Gradients on trial beside those that the formulas of torch give for the operations of J, at θ and beside it.

    Args:
        problem: J, θ and the options.
        record: of J.
        trials: by position in θ.
        gradients: on trial, by position.
        progress: advanced at every evaluation.
    """

    def __init__(
        self,
        problem: Problem,
        record: TracedEngine,
        trials: Trials,
        gradients: Mapping[int, AnalyticGradient],
        progress: ProgressBar,
    ) -> None:
        self._problem, self._theta, self._record = problem, problem.theta, record
        self._trials, self._gradients, self._progress = trials, gradients, progress
        self._found_beside: dict[int, dict[int, Floats]] = {}
        self._found_on_trial: dict[int, dict[int, Floats]] = {}

    # The gradient by torch's formulas ------------------------------------------------------------------------------

    @cached_property
    def _of_torch(self) -> dict[int, Floats]:
        return self._by_record()

    def _beside(self, point: int) -> dict[int, Floats]:
        """The same at a point beside θ."""
        if point not in self._found_beside:
            with self._directions.at((self._points[point], 1.0)):
                self._found_beside[point] = self._by_record()
        return self._found_beside[point]

    def _on_trial_beside(self, point: int) -> dict[int, Floats]:
        """The gradient on trial there, asked of its source again."""
        if point not in self._found_on_trial:
            with self._directions.at((self._points[point], 1.0)):
                found = self._problem.gradients_now(list(self._trials))
                values = {at: trial.at(found[at].values) for at, trial in self._trials.items()}
                del found
                self._problem.give_back_freed_memory()
                if point not in self._found_beside:  # what this is compared with; to come here takes a while, too
                    self._found_beside[point] = self._by_record()
            self._found_on_trial[point] = values
        return self._found_on_trial[point]

    @cached_property
    def _points(self) -> list[Direction]:
        """The directions to these points, in which every entry moves by its own size."""
        scales = dict.fromkeys(self._directions.sizes, DISTANCE)
        randoms = [self._directions.random(FIRST_POINT + k, scales) for k in range(POINTS)]
        return [self._directions.in_sizes(random) for random in randoms]

    def _has_one_slope(self, direction: Direction, points: Sequence[Direction] = ()) -> bool:
        """Whether all quantities have one slope along a direction, by steps that move no entry by much of its size."""
        sizes = self._directions.sizes_of_entries
        moved = [(components.abs() * abs(scale) / sizes(at)).max() for at, (scale, components) in direction.items()]
        reach = 1 / max([float(share) for share in moved])
        return self._quantities.have_one_slope(direction, reach, points)

    def _by_record(self) -> dict[int, Floats]:
        """The gradient by torch's formulas at what the parameters hold now, at the coordinates that were tried."""
        self._problem.objective.count(1)
        found, epsilon = self._record.gradients(list(self._trials)), self._problem.noise.epsilon
        return {
            position: trial.at(analytic_gradient(self._theta[position], found[position], epsilon).values)
            for position, trial in self._trials.items()
        }

    def _is_of_torch(self, position: int) -> Flags:
        """Entries of the gradient on trial that are what the formulas of torch give."""
        return self._agree(position, self._trials[position].analytic, self._of_torch[position])

    def _is_of_torch_beside(self, position: int) -> Flags:
        """Entries of which that holds at `NEARBY_GRADIENTS` points beside θ; none of a gradient that has no source."""
        right = np.full(len(self._trials[position].analytic), self._problem.request.gradients is None)
        for point in range(NEARBY_GRADIENTS):
            if right.any():
                on_trial, of_torch = self._on_trial_beside(point)[position], self._beside(point)[position]
                right &= self._agree(position, on_trial, of_torch)
        return right

    def _agree(self, position: int, one: Floats, other: Floats) -> Flags:
        allowed = self._problem.request.tolerance * (np.abs(one) + np.abs(other)) + self._gradients[position].error_bar
        return np.asarray(np.abs(one - other) <= allowed + rounding_of(one, self._gradients[position].epsilon))

    @property
    def _directions(self) -> Directions:
        return self._problem.directions

    @cached_property
    def _quantities(self) -> Quantities:
        return Quantities(self._record, self._directions, self._problem.objective)

    def _direction(self, entries: Mapping[int, Indices], along: Mapping[int, Floats]) -> Direction:
        """The direction that moves some of the coordinates that were tried."""
        direction: dict[int, Motion] = {}
        for position, which in entries.items():
            components = torch.zeros(self._theta[position].coordinates, dtype=torch.float64)
            components[torch.from_numpy(self._trials[position].flat(which))] = torch.from_numpy(along[position])
            if torch.count_nonzero(components):
                direction[position] = Motion(1.0, components)
        return direction

    # Entries that several kinks accuse -----------------------------------------------------------------------------

    def chosen_by_torch(self) -> dict[int, ParameterTrial]:
        """The trials in which accused entries are what torch's formulas give, made UNDECIDED.

        In a low precision rounding hides along which directions quantities have a kink: what two ways to differentiate
        agree on is not called wrong.
        """
        found: dict[int, ParameterTrial] = {}
        for position, trial in self._trials.items():
            if _is_wrong(trial):
                entries = np.flatnonzero((trial.results.outcome == Outcome.MISMATCH) & self._is_of_torch(position))
                found |= {position: _with_undecided(trial, entries)} if len(entries) else {}
        return found

    def excused(self) -> dict[int, ParameterTrial]:
        """The trials in which accused entries are a choice of slopes at kinks that meet, made UNDECIDED."""
        found: dict[int, ParameterTrial] = {}
        for position, trial in self._trials.items():
            accused = np.flatnonzero(trial.results.outcome == Outcome.MISMATCH)
            chosen = self._may_be_selected(position, accused)
            others = self._may_be_chosen(position, accused[~chosen])
            excused = np.concatenate([accused[chosen], self._crossing(position, others)])
            if len(excused):
                found[position] = _with_undecided(trial, excused)
        return found

    def _may_be_selected(self, position: int, accused: Indices) -> Flags:
        """Which accused entries tie with others for being selected, where the gradient on trial is a right choice.

        No kink need be crossed along such an entry alone: the second smallest of equal numbers does not move with any
        one of them, and is one of them all the same. At points beside θ now this entry is selected and now that: their
        derivatives vary, and so may those of entries which hold the same number; or J jumps there, as the most frequent
        number does. The choice is right where it is torch's, or where the gradient on trial is right beside θ, at all
        entries.
        """
        none = np.zeros(len(accused), bool)
        try:
            of_torch = self._is_of_torch(position)[accused]
            right = of_torch | (len(accused) > 0 and bool(self._is_of_torch_beside(position).all()))
            return right & (self._varies_beside(position)[accused] | self._jumps) if right.any() else none
        except Strayed:
            return none

    def _varies_beside(self, position: int) -> Flags:
        """Entries whose derivative differs between points right beside θ, and those that hold the same number."""
        varies = kinked(np.array([self._beside(point)[position] for point in range(POINTS)]))
        values = self._trials[position].at(flat_values(self._theta[position]))
        return np.asarray(np.isin(values, values[varies]))

    @cached_property
    def _jumps(self) -> bool:
        """Whether J at θ is another number than right beside it, however close."""
        which, steps = np.repeat(np.arange(POINTS), 2), np.tile([1.0, 1 / CLOSER], POINTS)
        values = self._directions.sampler(self._points)(which, steps).values
        far, near = np.abs(values - self._problem.noise.at_zero).reshape(-1, 2).T
        return bool(np.any((near > far / 2) & (near > NOISES * self._problem.noise.sigma_at_zero)))

    def _may_be_chosen(self, position: int, accused: Indices) -> Indices:
        """The accused entries that are what torch would choose, or right beside θ."""
        if not len(accused):
            return accused
        of_torch = self._is_of_torch(position)[accused]
        return accused[of_torch if of_torch.all() else of_torch | self._is_of_torch_beside(position)[accused]]

    def _crossing(self, position: int, entries: Indices) -> Indices:
        """Those of the entries along which a kink is crossed; all of them where the first many are."""
        crossing = [self._crosses_a_kink(position, int(entry)) for entry in entries[:MOST_EXCUSED]]
        return entries if all(crossing) else entries[: len(crossing)][np.array(crossing, dtype=bool)]

    def _crosses_a_kink(self, position: int, entry: int) -> bool:
        direction = self._direction({position: np.array([entry])}, {position: np.ones(1)})
        return not self._has_one_slope(direction)

    # Entries that a kink excuses -----------------------------------------------------------------------------------

    def contradicted(self, trials: Trials) -> dict[int, ParameterTrial]:
        """Those of these trials, in which nothing is wrong so far, that are contradicted along a joint direction."""
        others = [at for at in trials if not self._is_of_torch(at).all()]
        if not others or sum(len(trial.coordinates) for trial in trials.values()) > MOST_ENTRIES:
            return {}
        alone = [(at,) for at in others[:MOST_ALONE]] if len(trials) > 1 else []
        for positions in [tuple(trials), *alone]:
            found = self._contradicted_together(Joined(trials, positions))
            if found:
                return found
        return {}

    def _contradicted_together(self, joined: Joined) -> dict[int, ParameterTrial]:
        """The trials that are wrong by one direction through the kinked entries of all these tensors."""
        nearby = np.array([joined.values(gradients) for gradients in map(self._beside, range(POINTS))])
        of_torch = joined.values(self._of_torch)
        if not np.isfinite(nearby).all() or not np.isfinite(of_torch).all():
            return {}
        active = np.flatnonzero(kinked(nearby) | joined.at_kinks)
        on_trial, of_torch = joined.on_trial[active], of_torch[active]
        more = [of_torch, np.sign(on_trial), joined.signs(self._theta)[active], np.ones(len(active))]
        for unit in joint_directions(on_trial, of_torch, nearby[:, active], more) if len(active) else []:
            slope = float(of_torch @ unit)
            if self._is_contradicted(self._direction(*joined.split(active, unit)), float(on_trial @ unit), slope):
                allowed, wrong = nearest_allowed(on_trial, slope, unit)
                return self._marked(joined, active[wrong], allowed[wrong])
        return {}

    def _is_contradicted(self, direction: Direction, on_trial: float, slope: float) -> bool:
        """Whether J has one slope along a direction, by quantities and by differences, and not the one on trial."""
        return self._has_one_slope(direction, self._points) and self._is_off(direction, on_trial, slope)

    def _is_off(self, direction: Direction, on_trial: float, slope: float) -> bool:
        """Whether differences of J give this slope along a direction, and contradict the one on trial."""
        problem, reach = self._problem, np.array([self._directions.reach(direction)])
        sampler, largest = self._directions.sampler([direction]), LARGEST_MOVE * reach
        noise, tolerance = problem.noise, problem.request.tolerance
        check = entry_check_of(sampler, np.array([on_trial]), largest, reach, noise, tolerance, COARSE)
        results = judge_each(check)
        as_pieces = abs(results.numeric[0] - slope) <= abs(on_trial - slope) / 10
        return contradicts(results, on_trial) and bool(as_pieces)

    def _marked(self, joined: Joined, entries: Indices, allowed: Floats) -> dict[int, ParameterTrial]:
        """The trials with these joined entries marked as wrong, and what they should be.

        Entries that the formulas of torch give are wrong only where there are no others.
        """
        chosen = ~np.concatenate([self._is_of_torch(position) for position in joined.positions])[entries]
        if not chosen.any():
            chosen = ~chosen
        places, numeric = joined.split(entries[chosen], allowed[chosen])
        return {at: _with_wrong(joined.trials[at], where, numeric[at]) for at, where in places.items() if len(where)}


class Joined:
    """The entries of several tensors, one after the other.

    Args:
        trials: by position in θ.
        positions: of the tensors, in order.
    """

    def __init__(self, trials: Trials, positions: Sequence[int]) -> None:
        self.trials, self.positions = trials, positions

    @property
    def on_trial(self) -> Floats:
        """The gradients on trial."""
        return np.concatenate([self.trials[position].analytic for position in self.positions])

    @property
    def at_kinks(self) -> Flags:
        """Entries that were excused as kinks or as a choice, or agree with the middle of two slopes."""
        return np.concatenate([_at_kinks(self.trials[position]) for position in self.positions])

    def values(self, gradients: Mapping[int, Floats]) -> Floats:
        """Gradients at the coordinates that were tried, joined."""
        return np.concatenate([gradients[position] for position in self.positions])

    def signs(self, theta: Theta) -> Floats:
        """−1, 0 or 1, by the sign of what the coordinates hold."""
        values = [self.trials[position].at(flat_values(theta[position])) for position in self.positions]
        return np.asarray(np.sign(np.concatenate(values)))

    def split(self, entries: Indices, values: Floats) -> tuple[dict[int, Indices], dict[int, Floats]]:
        """Joined entries, and a number for each, by the position of their tensor: counted within it."""
        mine = {position: (begin <= entries) & (entries < end) for position, begin, end in self._parts()}
        begins = {position: begin for position, begin, _ in self._parts()}
        places = {position: entries[which] - begins[position] for position, which in mine.items()}
        return places, {position: values[which] for position, which in mine.items()}

    def _parts(self) -> Iterator[tuple[int, int, int]]:
        """Each position, and the numbers of its tensor's first entry and of the one after its last."""
        begin = 0
        for position in self.positions:
            end = begin + len(self.trials[position].coordinates)
            yield position, begin, end
            begin = end


def _at_kinks(trial: ParameterTrial) -> Flags:
    outcome, bent = trial.results.outcome, trial.results.bent
    chosen = (outcome == Outcome.UNDECIDED) & bool(trial.by_convention)
    in_the_middle = np.zeros(len(outcome), bool) if bent is None else (outcome == Outcome.MATCH) & bent
    return np.asarray((outcome == Outcome.KINK) | chosen | in_the_middle)


def _with_wrong(trial: ParameterTrial, entries: Indices, allowed: Floats) -> ParameterTrial:
    """The trial with entries that are wrong, and the nearest numbers that are not."""
    numeric, outcome = np.array(trial.results.numeric), np.array(trial.results.outcome)
    numeric[entries], outcome[entries] = allowed, Outcome.MISMATCH
    return replace(trial, results=replace(trial.results, numeric=numeric, outcome=outcome), jointly=len(entries))


def _with_undecided(trial: ParameterTrial, entries: Indices) -> ParameterTrial:
    outcome = np.array(trial.results.outcome)
    outcome[entries] = Outcome.UNDECIDED
    return replace(trial, results=replace(trial.results, outcome=outcome), by_convention=len(entries))
