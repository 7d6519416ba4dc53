"""Kinks of f at θ itself, where several units meet: the pieces of f that touch θ are differenced right beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Estimates, Stencil, through_stencil
from torch_gradcheck.verdicts.entry_check import EntryCheck, EntryResults, NearbySampler, Outcome
from torch_gradcheck.verdicts.refine import refined

REJUDGED = 8
"""How many suspected or undecided entries of a tensor are judged again at nearby points."""

NEARBY_POINTS = 8
"""At how many random points near θ the slopes of f are taken."""

NEARBY_GRADIENTS = 3
"""At how many of these points the gradient is checked too, where its source can be asked there."""


def excuse_hidden_kinks(
    check: EntryCheck, nearby: NearbySampler, which: Indices, outcome: NDArray[np.int8], estimates: Estimates
) -> NDArray[np.int8]:
    """Turns suspected mismatches into KINK or UNDECIDED where kinks at θ itself explain the gradient on trial.

    With several units of a ReLU layer at exactly 0, autograd's gradient may be that of a piece of f that touches θ,
    and still lie outside of the two slopes along one coordinate. So each suspected entry is compared with the k
    different slopes that f has at `NEARBY_POINTS` points right beside θ:

    - within their range: KINK;
    - outside by at most k times the range, and k > 2: UNDECIDED. Autograd may have chosen a different piece in each
      unit; the sum is then the gradient of no piece;
    - k = NEARBY_POINTS, a slope of its own at every point: UNDECIDED. There are more units than points;
    - the range shrinks with the distance from θ: the mismatch stands. f is only curved, since pieces that touch θ keep
      their slopes at any distance.

    Where gradients can be computed at nearby points: wrong at `NEARBY_GRADIENTS` of them, the mismatch stands; right at
    one of them, it is at least UNDECIDED.

    Args:
        check: the gradient on trial.
        nearby: samplers of f around points near θ.
        which: shape (K,), the entries that were refined.
        outcome: shape (K,), their outcomes; changed in place and returned.
        estimates: their derivatives.
    """
    suspected = np.flatnonzero(outcome == Outcome.MISMATCH)
    rejudged = suspected[:REJUDGED]
    if not len(rejudged):
        return outcome
    entries = which[rejudged]
    distance = min(nearby_distance(check.noise), float(np.min(estimates.step[rejudged])) / 8)
    far, _ = _slopes_nearby(check, nearby, entries, distance)
    near, error_bar = _slopes_nearby(check, nearby, entries, distance / 16)
    persistent = np.ptp(near, axis=0) > np.maximum(np.ptp(far, axis=0) / 4, 4 * error_bar)
    of_a_piece, of_a_sum = _explained_by_pieces(check.analytic[entries], near, error_bar)
    if persistent.any() and check.nearby_analytic is not None:
        right, wrong = _judged_nearby(check, entries, distance)
        of_a_piece, of_a_sum = of_a_piece & ~wrong, (of_a_sum | right) & ~wrong
    outcome[rejudged[persistent & of_a_sum]] = Outcome.UNDECIDED
    outcome[rejudged[persistent & of_a_piece]] = Outcome.KINK
    if not np.any(outcome[rejudged] == Outcome.MISMATCH):
        outcome[suspected[REJUDGED:]] = Outcome.UNDECIDED
    return outcome


def judge_undecided_nearby(check: EntryCheck, results: EntryResults) -> None:
    """Marks undecided entries as wrong where the gradient is wrong at every one of `NEARBY_GRADIENTS` points beside θ.

    With many kinks at θ itself no two steps agree on a derivative. A mistake in the backward shows beside θ as well.

    Args:
        check: the gradient on trial.
        results: of all entries; its `outcome` is changed in place.
    """
    undecided = np.flatnonzero(results.outcome == Outcome.UNDECIDED)
    if check.nearby is None or check.nearby_analytic is None or not len(undecided):
        return
    entries = results.worst_first(check.analytic, undecided)[:REJUDGED]
    _, wrong = _judged_nearby(check, entries, nearby_distance(check.noise))
    results.outcome[entries[wrong]] = Outcome.MISMATCH


def nearby_distance(noise: Noise) -> float:
    """Relative distance of nearby points from θ: ε^0.32, which is 1e-5 in float64 and 6e-3 in float32."""
    return float(noise.epsilon**0.32)


def _explained_by_pieces(analytic: Floats, near: Floats, error_bar: Floats) -> tuple[Flags, Flags]:
    """Entries whose gradient could be that of one piece of f, and those where it could be a sum over different pieces.

    Args:
        analytic: shape (K,), the gradient on trial.
        near: shape (NEARBY_POINTS, K), slopes of f beside θ.
        error_bar: shape (K,), of these slopes.
    """
    low, high, span = near.min(axis=0), near.max(axis=0), np.ptp(near, axis=0)
    pieces = _pieces(near, error_bar)
    within = (low - pieces * span <= analytic) & (analytic <= high + pieces * span)
    return (low <= analytic) & (analytic <= high), (pieces > 2) & (within | (pieces == NEARBY_POINTS))


def _pieces(slopes: Floats, error_bar: Floats) -> Indices:
    """How many different slopes each function has at nearby points; two differ if they are 4 error bars apart."""
    return np.asarray(1 + np.sum(np.diff(np.sort(slopes, axis=0), axis=0) > 4 * error_bar, axis=0))


def _judged_nearby(check: EntryCheck, entries: Indices, distance: float) -> tuple[Flags, Flags]:
    """Entries whose gradient is right at one nearby point or more, and those where it is wrong at all of them."""
    outcomes = np.array(
        [refined(check.at_nearby_point(k, distance), entries, check.unit[entries])[1] for k in range(NEARBY_GRADIENTS)]
    )
    return (outcomes == Outcome.MATCH).any(axis=0), (outcomes == Outcome.MISMATCH).all(axis=0)


def _slopes_nearby(
    check: EntryCheck, nearby: NearbySampler, entries: Indices, distance: float
) -> tuple[Floats, Floats]:
    """Centered differences of f at points near θ, shape (NEARBY_POINTS, K), and their largest error bar, (K,)."""
    stencil = Stencil(distance / 8, 0)
    found = [
        through_stencil(nearby(k, distance), entries, check.unit[entries], stencil, check.noise)
        for k in range(NEARBY_POINTS)
    ]
    return np.array([each.central for each in found]), np.max([each.roundoff for each in found], axis=0)
