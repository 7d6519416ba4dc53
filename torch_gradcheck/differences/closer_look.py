"""A closer look at entries that disagree, on a ladder of steps: match, kink, mismatch or undecided."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.differences.ladder import COARSE, FINE, SIGMAS, Estimates, Tableau
from torch_gradcheck.differences.question import Outcome, Question
from torch_gradcheck.differences.sampling import Flags, Floats, Indices
from torch_gradcheck.differences.step_size import probes_of

ACCUSATION = 3.0
"""How many error bars a gradient must be off to be accused."""

LOW_PRECISION = 1e-10
"""A machine epsilon above this is that of float32 or less."""

BETTER = (4.0, 32.0)
"""How many times better larger steps must agree with each other than with smaller ones: several, and a single one."""

HIDING = 0.1
"""A piece of f this small against the size of its argument is not believed to have a slope of its own."""

BETWEEN = 10
"""How many steps below the smallest one are looked at, on each side of 0, where a piece of f may lie between them."""

IN_HIDING = 2.0 ** -np.arange(8)
"""Where to look for a slope that noise may hide, in multiples of the width over which it rises by the noise ..."""

IN_A_ROW = 4
"""... and how many must agree there one after the other: slopes of noise that is nothing else do so by chance once in
ten thousand times."""


def look_closely(question: Question, which: Indices, unit: Floats) -> tuple[Estimates, NDArray[np.int8]]:
    """Estimates and outcomes from the coarse ladder, and from the fine one where only a kink could still excuse."""
    estimates = question.climb(which, unit, question.ladder)
    outcome = _outcomes(question, which, estimates)
    resolved = np.abs(question.analytic[which] - estimates.central) > ACCUSATION * estimates.error
    open_ones = np.flatnonzero((outcome == Outcome.UNDECIDED) & resolved)
    if len(open_ones) and question.ladder is COARSE:
        finer = question.climb(which[open_ones], unit[open_ones], FINE)
        settled = _outcomes(question, which[open_ones], finer)
        agree = np.abs(finer.central - estimates.central[open_ones]) <= finer.error + estimates.error[open_ones]
        outcome[open_ones] = np.where(agree, settled, Outcome.UNDECIDED)
        estimates = estimates.replaced(open_ones[agree], finer, np.flatnonzero(agree))
    accused = np.flatnonzero(outcome == Outcome.MISMATCH)
    if len(accused):
        off = np.abs(question.analytic[which] - estimates.central)
        outcome[accused[_found_in_hiding(question, which[accused], off[accused])]] = Outcome.UNDECIDED
    return estimates, outcome


def _outcomes(question: Question, which: Indices, estimates: Estimates) -> NDArray[np.int8]:
    """Match, kink, mismatch or undecided, from one ladder's estimates."""
    analytic, central = question.analytic[which], estimates.central
    off = np.abs(analytic - central)
    match = np.isfinite(estimates.error) & question.agrees(which, central, estimates.error)
    between = off <= np.abs(estimates.jump) / 2 + estimates.error + estimates.jump_error
    kink = estimates.kinked & between
    outside = off > estimates.half_width + question.tolerance * (np.abs(analytic) + np.abs(central))
    bar = _not_lucky(question, estimates.error)
    wrong = outside & ~question.agrees(which, central, bar, margin=ACCUSATION)
    wrong &= _hiding_place(question, off) <= HIDING * question.scale[which]
    wrong &= estimates.step * question.unit[which] <= question.scale[which]  # f was seen from closer than its own size
    wrong &= ~_between_steps(question, which, estimates, off)
    wrong &= ~_supported(analytic, off, estimates.tableau)
    choices = [Outcome.MATCH, Outcome.KINK, Outcome.MISMATCH]
    return np.select([match, kink, wrong], choices, default=Outcome.UNDECIDED).astype(np.int8)


def _not_lucky(question: Question, error: Floats) -> Floats:
    """The error bars to accuse by: in a low precision none is smaller than is usual in its tensor.

    Few values of f differ at all there, and by chance the rungs of some entry agree much better than they should.
    """
    if question.noise.epsilon < LOW_PRECISION:
        return error
    probes = probes_of(question.analytic)
    usual = question.climb(probes, question.unit[probes], question.ladder).error
    return np.maximum(error, float(np.median(usual)))


def _supported(analytic: Floats, off: Floats, tableau: Tableau) -> Flags:
    """Whether some larger steps, which agree with each other much better than with `central`, give the gradient.

    So it is where a part of f is computed in a lower precision and is a staircase to small steps, however well these
    agree with each other: what f's slope is depends on how closely one looks. A single estimate may give it by chance
    where f oscillates, unless it is a good one.
    """
    with np.errstate(invalid="ignore"):
        close = np.abs(tableau.values - analytic[:, None]) <= tableau.local
    fair, good = (close & (tableau.local <= off[:, None] / better) for better in BETTER)
    return np.asarray((np.sum(fair, axis=(0, 2)) > 1) | np.any(good, axis=(0, 2)))


def _between_steps(question: Question, which: Indices, estimates: Estimates, off: Floats) -> Flags:
    """Whether a piece of f right at 0, with the gradient on trial for its slope, may lie between the smallest steps.

    f would rise by |off| times its width there, and that is no more than the range in which f was seen. So x/|x| rises,
    or the norm of a row of zeros. An f that does not move at all has no such piece, nor one that is calm there.
    """
    moves = estimates.range > 2 * SIGMAS * question.roundoff
    between = moves & (off * question.ladder.rungs[-1] * question.unit[which] > estimates.range)
    open_ones = np.flatnonzero(between)
    if len(open_ones):
        smallest = estimates.range[open_ones] / off[open_ones] / 4
        slopes = np.abs(estimates.jump) + estimates.jump_error + estimates.error
        between[open_ones] = ~_calm(
            question, which[open_ones], smallest, estimates.central[open_ones], slopes[open_ones]
        )
    return np.asarray(between)


def _calm(question: Question, which: Indices, smallest: Floats, slope: Floats, give: Floats) -> Flags:
    """Whether f goes on between 0 and the smallest step of the ladder as it does above.

    Args:
        question: what is tried.
        which: shape (K,), the functions.
        smallest: how close to look.
        slope: what f is to follow, within its noise ...
        give: ... and how far that slope may be off, on either side of 0.
    """
    with np.errstate(all="ignore"):
        largest = question.ladder.rungs[-1] * question.unit[which]
        steps = np.geomspace(largest, smallest, BETWEEN, axis=1)
        steps = np.concatenate([steps, -steps], axis=1)
        samples = question.sampler(np.repeat(which, steps.shape[1]), steps.ravel())
        taken, values = samples.steps.reshape(steps.shape), samples.values.reshape(steps.shape)
        bend = give[:, None] * np.abs(taken)
        beside = np.abs(values - question.at_zero() - slope[:, None] * taken)
        straight = beside <= ACCUSATION * SIGMAS * question.roundoff + bend
    seen = taken != 0  # what θ's precision can tell from θ
    return np.asarray((straight | ~seen).all(axis=1) & (np.sum(seen, axis=1) >= BETWEEN / 2))


def _found_in_hiding(question: Question, which: Indices, off: Floats) -> Flags:
    """Whether f has the gradient on trial for its slope where it would rise by no more than the noise.

    What looks like noise may be f itself, far below the smallest step: sin(10¹²·x). Its slopes there agree with the
    gradient, one after the other, as those of noise do not.
    """
    with np.errstate(all="ignore"):
        steps = (question.roundoff / off)[:, None] * IN_HIDING
        samples = question.sampler(np.tile(np.repeat(which, len(IN_HIDING)), 2), np.concatenate([steps, -steps], None))
        after, before = samples.steps.reshape(2, *steps.shape)
        above, below = samples.values.reshape(2, *steps.shape)
        slopes = (above - below) / (after - before)
        # Where f is too coarse to move at all, a gradient near 0 is not what agrees.
        allowed = np.minimum(off, np.abs(question.analytic[which])) / 4
        agree = np.abs(slopes - question.analytic[which][:, None]) < allowed[:, None]
    in_a_row = np.lib.stride_tricks.sliding_window_view(agree, IN_A_ROW, axis=1)
    return np.asarray(np.any(np.all(in_a_row, axis=2), axis=1))


def _hiding_place(question: Question, off: Floats) -> Floats:
    """The width of a piece of f, right at 0, that could have the gradient on trial for its slope and not be seen.

    Its rise would be below the noise.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(SIGMAS * question.roundoff / off)
