"""Tries a whole gradient against centered differences: every entry once, every disagreement on a ladder of steps.

A disagreement is not yet a mistake: the step may be too large (truncation, a kink crossed) or too small (roundoff).
Only an estimate that agrees with itself on two ladders, and leaves no slope of f that the gradient could be, accuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.differences.ladder import (
    COARSE,
    FINE,
    SIGMAS,
    Estimates,
    Ladder,
    Noise,
    Tableau,
    Window,
    climb,
    through_window,
    window_for,
)
from torch_gradcheck.differences.sampling import Flags, Floats, Indices, Sampler

PROBES = 8
"""How many entries are looked at first, to see whether the step suits the tensor."""

BATCH = 16
"""How many disagreeing entries go up the ladder at a time; four times as many where none of the first is a mistake."""

SECOND_LADDER = 0.61
"""The second ladder's unit against the first one's: none of its steps is a step of the first."""

ACCUSATION = 3.0
"""How many error bars a gradient must be off to be accused."""

HIDING = 0.1
"""A piece of f this small against the size of its argument is not believed to have a slope of its own."""

NEARBY_POINTS = 8
"""How many points near θ are tried for slopes that a kink at θ itself could hide."""

NEXT_DOOR = 3
"""At how many of them the gradient itself is tried, where it can be had there."""

ANALYTIC_ROUNDING = 64.0
"""How many machine epsilons of the largest entry the analytic side may be off by rounding alone ..."""

COMPUTED_IN = float(np.finfo(np.float32).eps)
"""... those of float32 at most: a gradient in a lower precision has been rounded to it in the end, entry by entry."""


class Outcome:
    """What was found of one entry, as it stands in arrays.

    Plain numbers: numpy swallows a Ctrl-C that lands while it looks up the attributes of an enum's member.
    """

    MATCH = 0
    KINK = 1
    UNDECIDED = 2
    MISMATCH = 3


NearbySampler = Callable[[int, float], Sampler]
"""(k, scale) to a sampler of f around the k-th random point at that relative distance from θ."""

NearbyGradient = Callable[[int, float], Floats]
"""(k, scale) to what stands on trial there, shape (N,)."""


@dataclass(frozen=True)
class Question:
    """What is tried.

    Attributes:
        sampler: evaluates f_i(t) = J(θ + t·e_i).
        second: the same in the plainest way, for second opinions; its f_i(0) is `second_at_zero`.
        nearby: the same around points near θ; None where J is known to have no kink at θ itself.
        nearby_analytic: the gradient at these points, from the same source; None where there is none, as for one that
            was derived by hand.
        analytic: shape (N,), the gradient on trial.
        analytic_epsilon: machine epsilon of the precision it was given in.
        unit: shape (N,), what steps are multiples of: max(1, |θ_i|).
        scale: shape (N,), the size of the arguments, at which f may well vary: the larger of |θ_i| and the tensor's
            root mean square, 1 where all of it is 0.
        noise: of J.
        tolerance: the largest relative error that passes.
        eps: a step to use as it is, the same for every entry; None to choose one.
        ladder: what a disagreement goes up; below `COARSE` there is the fine one.
    """

    sampler: Sampler
    second: Sampler
    second_at_zero: float
    nearby: NearbySampler | None
    nearby_analytic: NearbyGradient | None
    analytic: Floats
    analytic_epsilon: float
    unit: Floats
    scale: Floats
    noise: Noise
    tolerance: float
    eps: float | None
    ladder: Ladder = COARSE

    def agrees(self, which: Indices, numeric: Floats, error: Floats, margin: float = 1.0) -> Flags:
        """Whether the gradient is within the tolerance and `margin` error bars of `numeric`; never where NaN."""
        analytic = self.analytic[which]
        allowed = self.tolerance * (np.abs(analytic) + np.abs(numeric)) + margin * error + self.rounding[which]
        return np.asarray(np.isfinite(analytic) & (np.abs(analytic - numeric) <= allowed))

    def to_second(self) -> Question:
        """The same question, to the second sampler."""
        return replace(self, sampler=self.second, noise=self.noise._replace(at_zero=self.second_at_zero))

    def next_door(self, k: int, distance: float) -> Question:
        """The same question at the k-th point near θ, where no unit of J lies on its corner."""
        assert self.nearby is not None
        assert self.nearby_analytic is not None
        sampler = self.nearby(k, distance)
        at_zero = float(sampler(np.zeros(1, dtype=np.int64), np.zeros(1)).values[0])
        noise = self.noise._replace(at_zero=at_zero)
        return replace(self, sampler=sampler, noise=noise, analytic=self.nearby_analytic(k, distance))

    def through(self, window: Window, which: Indices) -> tuple[Floats, Floats]:
        """The centered differences that `window` names, in units of the argument or, for a given step, of 1."""
        unit = self.unit[which] if self.eps is None else np.ones(len(which))
        return through_window(self.sampler, which, unit, window, self.noise)

    @cached_property
    def rounding(self) -> Floats:
        """The analytic side's own rounding, shape (N,), in the unit of a derivative."""
        return rounding_of(self.analytic, self.analytic_epsilon)


def rounding_of(analytic: Floats, epsilon: float) -> Floats:
    """How far each entry of a gradient in a precision of machine epsilon `epsilon` may be off by rounding alone."""
    size = np.abs(np.nan_to_num(analytic, posinf=0.0, neginf=0.0))
    on_the_way = ANALYTIC_ROUNDING * min(epsilon, COMPUTED_IN) * float(np.max(size, initial=0.0))
    return np.asarray(on_the_way + epsilon * size)


@dataclass
class Answer:
    """What was found, entry by entry; arrays of shape (N,).

    Attributes:
        numeric: the derivative of J, refined where the first one disagreed; at a kink the slope nearest to the
            gradient on trial, within the error bars of the one-sided ones.
        error: its error bar.
        outcome: `Outcome` values.
        left, right: one-sided slopes where the entry went up the ladder, else NaN.
        window: the difference that most entries were judged by.
    """

    numeric: Floats
    error: Floats
    outcome: NDArray[np.int8]
    left: Floats
    right: Floats
    window: Window


def first_step(noise: Noise) -> float:
    """The relative step that balances roundoff against truncation where nothing is known but the noise of J.

    C(h) is off by σ/h from roundoff and by h²·f'''/6 from truncation; the sum is smallest at h = (3σ / f''')^(1/3).
    With f''' of the order of J that is (σ/J)^(1/3), near 1e-5 in float64, where the lecture's 1e-7 is all roundoff.
    """
    scale = max(abs(noise.at_zero), np.finfo(np.float64).tiny)
    ratio = float(np.clip(noise.sigma / scale, noise.epsilon / 4, noise.epsilon * 1e3))
    return float(np.cbrt(ratio))


def try_gradient(question: Question, carried: Window | None) -> Answer:
    """Judges every entry of the gradient on trial.

    Args:
        question: what is tried.
        carried: the window that suited the tensor before; tried where the first step drowns in noise.
    """
    everything = np.arange(len(question.analytic), dtype=np.int64)
    window = _chosen_window(question, carried) if len(everything) else Window(first_step(question.noise), 0)
    numeric, error = question.through(window, everything)
    left, right = np.full((2, len(numeric)), np.nan)
    answer = Answer(numeric, error, np.zeros(len(numeric), np.int8), left, right, window)
    _judge_suspects(question, answer, np.flatnonzero(~question.agrees(everything, numeric, error)))
    return answer


def judge_each(question: Question) -> Answer:
    """Takes every entry up the ladder at once: for a few that are believed to be wrong."""
    nothing = np.full(len(question.analytic), np.nan)
    answer = Answer(
        nothing.copy(),
        nothing.copy(),
        np.zeros(len(nothing), np.int8),
        nothing.copy(),
        nothing.copy(),
        Window(question.ladder.smallest, 0),
    )
    _judge_on_ladder(question, answer, np.arange(len(nothing), dtype=np.int64))
    return answer


def _chosen_window(question: Question, carried: Window | None) -> Window:
    if question.eps is not None:
        return Window(question.eps, 0)
    default = Window(first_step(question.noise), 0)
    if carried is not None and _drowns(question, default) and not _drowns(question, carried):
        default = carried
    probes = _probes(question.analytic)
    numeric, error = question.through(default, probes)
    if not _drowns(question, default) and bool(question.agrees(probes, numeric, error).all()):
        return default
    estimates = climb(question.sampler, probes, question.unit[probes], question.noise)
    if not _drowns(question, default) and _same_derivatives(question, numeric, error, estimates):
        return default  # the step suits; it is the gradient that is wrong
    window, typical = window_for(estimates.tableau, _needed(question, estimates))
    better = typical < float(np.median(error)) or not _drowns(question, default)
    return window if better and np.isfinite(typical) else default


def _same_derivatives(question: Question, numeric: Floats, error: Floats, estimates: Estimates) -> bool:
    allowed = question.tolerance * np.abs(numeric) + error + estimates.error
    return bool(np.mean(np.abs(numeric - estimates.central) <= allowed) > 0.5)


def _needed(question: Question, estimates: Estimates | None = None) -> float:
    """The error bar that resolves a relative error of a quarter of the tolerance in a typical entry.

    Infinite where both sides are zero to within their error: no window tells more than that.
    """
    typical = _root_mean_square(question.analytic)
    if estimates is not None:
        resolved = estimates.central[np.abs(estimates.central) > estimates.error]
        typical = max(typical, _root_mean_square(resolved))
        if typical <= float(np.median(estimates.error)):
            return float("inf")
    return question.tolerance / 4 * typical


def _root_mean_square(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(finite**2))) if len(finite) else 0.0


def _drowns(question: Question, window: Window) -> bool:
    """Whether roundoff alone, at this window, would hide a relative error of the size of the tolerance."""
    return _roundoff(question) / window.step > _needed(question)


def _probes(analytic: Floats) -> Indices:
    """The entry with the largest gradient, and others evenly over the tensor."""
    spread = np.linspace(0, len(analytic) - 1, min(PROBES, len(analytic))).astype(np.int64)
    largest = int(np.argmax(np.nan_to_num(np.abs(analytic))))
    return np.unique(np.append(spread, largest))


def _judge_suspects(question: Question, answer: Answer, suspects: Indices) -> None:
    """Takes disagreeing entries up the ladder, a batch at a time, until a mistake is confirmed or none is left.

    Once one is confirmed, the tensor is wrong; what remains is only counted, by one more step each, so that a failure
    costs no more than a few times a pass.
    """
    not_finite = suspects[~np.isfinite(question.analytic[suspects])]
    answer.outcome[not_finite] = Outcome.MISMATCH
    waiting = _worst_first(question, answer, suspects[np.isfinite(question.analytic[suspects])])
    size = BATCH
    while len(waiting):
        batch, waiting, size = waiting[:size], waiting[size:], 4 * BATCH
        _judge_on_ladder(question, answer, batch)
        if len(waiting) and np.any(answer.outcome[batch] == Outcome.MISMATCH):
            _count_by_second_step(question, answer, waiting)
            return
    _judge_undecided_next_door(question, answer)


def _worst_first(question: Question, answer: Answer, suspects: Indices) -> Indices:
    off = np.nan_to_num(np.abs(question.analytic[suspects] - answer.numeric[suspects]), nan=np.inf)
    return suspects[np.argsort(-off, kind="stable")]


def _judge_on_ladder(question: Question, answer: Answer, which: Indices) -> None:
    estimates, outcome = _look_closely(question, which, question.unit[which])
    accused = np.flatnonzero(outcome == Outcome.MISMATCH)
    if len(accused):
        unit = SECOND_LADDER * question.unit[which[accused]]
        again, second = _look_closely(question.to_second(), which[accused], unit)
        confirmed = second == Outcome.MISMATCH
        consistent = np.abs(again.central - estimates.central[accused]) <= again.error + estimates.error[accused]
        outcome[accused[~(confirmed & consistent)]] = Outcome.UNDECIDED
        if question.nearby is not None:
            outcome = _excuse_hidden_kinks(question, question.nearby, which, outcome, estimates)
    bar = estimates.error + estimates.jump_error
    low, high = np.minimum(estimates.left, estimates.right) - bar, np.maximum(estimates.left, estimates.right) + bar
    numeric = np.where(outcome == Outcome.KINK, np.clip(question.analytic[which], low, high), estimates.central)
    answer.numeric[which], answer.error[which] = numeric, estimates.error
    answer.left[which], answer.right[which] = estimates.left, estimates.right
    answer.outcome[which] = outcome


def _look_closely(question: Question, which: Indices, unit: Floats) -> tuple[Estimates, NDArray[np.int8]]:
    """Estimates and outcomes from the coarse ladder, and from the fine one where only a kink could still excuse."""
    estimates = climb(question.sampler, which, unit, question.noise, question.ladder)
    outcome = _outcomes(question, which, estimates)
    resolved = np.abs(question.analytic[which] - estimates.central) > ACCUSATION * estimates.error
    open_ones = np.flatnonzero((outcome == Outcome.UNDECIDED) & resolved)
    if len(open_ones) and question.ladder is COARSE:
        finer = climb(question.sampler, which[open_ones], unit[open_ones], question.noise, FINE)
        settled = _outcomes(question, which[open_ones], finer)
        agree = np.abs(finer.central - estimates.central[open_ones]) <= finer.error + estimates.error[open_ones]
        outcome[open_ones] = np.where(agree, settled, Outcome.UNDECIDED)
        estimates = estimates.replaced(open_ones[agree], finer, np.flatnonzero(agree))
    return estimates, outcome


def _outcomes(question: Question, which: Indices, estimates: Estimates) -> NDArray[np.int8]:
    """Match, kink, mismatch or undecided, from one ladder's estimates."""
    analytic, central = question.analytic[which], estimates.central
    off = np.abs(analytic - central)
    match = np.isfinite(estimates.error) & question.agrees(which, central, estimates.error)
    between = off <= np.abs(estimates.jump) / 2 + estimates.error + estimates.jump_error
    kink = estimates.kinked & between
    outside = off > estimates.half_width + question.tolerance * (np.abs(analytic) + np.abs(central))
    wrong = outside & ~question.agrees(which, central, estimates.error, margin=ACCUSATION)
    wrong &= _hiding_place(question, off) <= HIDING * question.scale[which]
    wrong &= estimates.step * question.unit[which] <= question.scale[which]  # f was seen from closer than its own size
    wrong &= ~_between_steps(question, which, estimates, off)
    wrong &= ~_supported(analytic, off, estimates.tableau)
    choices = [Outcome.MATCH, Outcome.KINK, Outcome.MISMATCH]
    return np.select([match, kink, wrong], choices, default=Outcome.UNDECIDED).astype(np.int8)


def _supported(analytic: Floats, off: Floats, tableau: Tableau) -> Flags:
    """Whether some larger steps, which agree with each other much better than with `central`, give the gradient.

    So it is where a part of f is computed in a lower precision and is a staircase to small steps, however well these
    agree with each other: what f's slope is depends on how closely one looks.
    """
    with np.errstate(invalid="ignore"):
        close = np.abs(tableau.values - analytic[:, None]) <= tableau.local
        return np.asarray((close & (tableau.local <= off[:, None] / 4)).any(axis=(0, 2)))


def _between_steps(question: Question, which: Indices, estimates: Estimates, off: Floats) -> Flags:
    """Whether a piece of f right at 0, with the gradient on trial for its slope, would lie between the smallest steps.

    f would rise by |off| times its width there, and that is no more than the range in which f was seen. So x/|x| rises,
    or the norm of a row of zeros. An f that does not move at all has no such piece.
    """
    moves = estimates.range > 2 * SIGMAS * _roundoff(question)
    return np.asarray(moves & (off * question.ladder.rungs[-1] * question.unit[which] > estimates.range))


def _roundoff(question: Question) -> float:
    """One standard deviation of the noise of a value of f."""
    return max(question.noise.sigma, question.noise.epsilon / 2 * abs(question.noise.at_zero))


def _hiding_place(question: Question, off: Floats) -> Floats:
    """The width of a piece of f, right at 0, that could have the gradient on trial for its slope and not be seen.

    Its rise would be below the noise.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(SIGMAS * _roundoff(question) / off)


def _excuse_hidden_kinks(
    question: Question, nearby: NearbySampler, which: Indices, outcome: NDArray[np.int8], estimates: Estimates
) -> NDArray[np.int8]:
    """An accused entry whose gradient is among the slopes that f has right next to θ lies at a kink, too.

    With several units of a ReLU layer at exactly 0, autograd's choice of a slope in each need not lie between the two
    slopes along one coordinate, and still is the gradient of a piece of f that touches θ: a kink. Or the pieces it
    chose do not meet at all, and the gradient is a sum over the units that no piece has: where more than two slopes are
    seen, nothing can be told up to their span, as many times as there are slopes, outside of them; and nothing at all
    where each point has its own, for then there are more units than points. Pieces that touch θ do so at any distance:
    where the slopes draw together as the distance shrinks, f is merely curved, and nothing is excused.
    """
    accused = np.flatnonzero(outcome == Outcome.MISMATCH)
    tried = accused[:PROBES]
    if not len(tried):
        return outcome
    entries = which[tried]
    distance = min(_nearby_distance(question), float(np.min(estimates.step[tried])) / 8)
    far, _ = _slopes_nearby(question, nearby, entries, distance)
    near, noise = _slopes_nearby(question, nearby, entries, distance / 16)
    persistent = np.ptp(near, axis=0) > np.maximum(np.ptp(far, axis=0) / 4, 4 * noise)
    a_piece, a_sum = _chosen_by(question.analytic[entries], near, noise)
    if persistent.any() and question.nearby_analytic is not None:
        right, wrong = _found_next_door(question, entries, distance)
        a_piece, a_sum = a_piece & ~wrong, (a_sum | right) & ~wrong
    outcome[tried[persistent & a_sum]] = Outcome.UNDECIDED
    outcome[tried[persistent & a_piece]] = Outcome.KINK
    if not np.any(outcome[tried] == Outcome.MISMATCH):
        outcome[accused[PROBES:]] = Outcome.UNDECIDED
    return outcome


def _nearby_distance(question: Question) -> float:
    """How far off points near θ are: 1e-5 in float64."""
    return float(question.noise.epsilon**0.32)


def _chosen_by(analytic: Floats, near: Floats, noise: Floats) -> tuple[Flags, Flags]:
    """Whether the gradient could be that of a piece of f next to θ, or a sum over units that chose different pieces."""
    low, high, span = near.min(axis=0), near.max(axis=0), np.ptp(near, axis=0)
    pieces = _pieces(near, noise)
    within = (low - pieces * span <= analytic) & (analytic <= high + pieces * span)
    return (low <= analytic) & (analytic <= high), (pieces > 2) & (within | (pieces == NEARBY_POINTS))


def _found_next_door(question: Question, entries: Indices, distance: float) -> tuple[Flags, Flags]:
    """Whether the gradient is right at some of the points next to θ, and whether it is wrong at all of them."""
    outcomes = np.array(
        [_look_closely(question.next_door(k, distance), entries, question.unit[entries])[1] for k in range(NEXT_DOOR)]
    )
    return (outcomes == Outcome.MATCH).any(axis=0), (outcomes == Outcome.MISMATCH).all(axis=0)


def _judge_undecided_next_door(question: Question, answer: Answer) -> None:
    """With many kinks at θ itself no two steps agree; a mistake in the backward shows beside θ, too."""
    undecided = np.flatnonzero(answer.outcome == Outcome.UNDECIDED)
    if question.nearby is None or question.nearby_analytic is None or not len(undecided):
        return
    entries = _worst_first(question, answer, undecided)[:PROBES]
    _, wrong = _found_next_door(question, entries, _nearby_distance(question))
    answer.outcome[entries[wrong]] = Outcome.MISMATCH


def _pieces(slopes: Floats, noise: Floats) -> Indices:
    """How many different slopes, beyond their noise, each function has among those of nearby points."""
    return np.asarray(1 + np.sum(np.diff(np.sort(slopes, axis=0), axis=0) > 4 * noise, axis=0))


def _slopes_nearby(
    question: Question, nearby: NearbySampler, entries: Indices, distance: float
) -> tuple[Floats, Floats]:
    """Centered differences of f at points near θ, shape (NEARBY_POINTS, K), and their largest error bar, (K,)."""
    window = Window(distance / 8, 0)
    pairs = [
        through_window(nearby(k, distance), entries, question.unit[entries], window, question.noise)
        for k in range(NEARBY_POINTS)
    ]
    return np.array([slopes for slopes, _ in pairs]), np.max([error for _, error in pairs], axis=0)


def _count_by_second_step(question: Question, answer: Answer, which: Indices) -> None:
    """Entries of a tensor known to be wrong: wrong too if another step gives the same derivative, else undecided."""
    window = Window(answer.window.step * SECOND_LADDER, answer.window.order)
    numeric, error = question.through(window, which)
    both = answer.error[which] + error
    off = np.abs(question.analytic[which] - numeric)
    steady = np.abs(answer.numeric[which] - numeric) <= both + off / 10
    wrong = steady & ~question.agrees(which, numeric, both, margin=ACCUSATION)
    answer.outcome[which] = np.where(wrong, Outcome.MISMATCH, Outcome.UNDECIDED)
