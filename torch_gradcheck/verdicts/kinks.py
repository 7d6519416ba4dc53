"""Corners of f at θ itself, where several units meet: what hides behind them is looked for right next to θ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.richardson import Estimates, Stencil, through_stencil
from torch_gradcheck.verdicts.entry_check import EntryCheck, EntryResults, NearbySampler, Outcome
from torch_gradcheck.verdicts.refine import refined

PROBES = 8
"""How many accused or undecided entries are looked at again."""

NEARBY_POINTS = 8
"""How many points near θ are probed for slopes that a kink at θ itself could hide."""

NEARBY_GRADIENTS = 3
"""At how many of them the gradient itself is probed, where it can be had there."""


def excuse_hidden_kinks(
    check: EntryCheck, nearby: NearbySampler, which: Indices, outcome: NDArray[np.int8], estimates: Estimates
) -> NDArray[np.int8]:
    """An accused entry whose gradient is among the slopes that f has right next to θ lies at a kink, too.

    With several units of a ReLU layer at exactly 0, autograd's choice of a slope in each need not lie between the two
    slopes along one coordinate, and still is the gradient of a piece of f that touches θ: a kink. Or the pieces it
    chose do not meet at all, and the gradient is a sum over the units that no piece has: where more than two slopes are
    seen, nothing can be told up to their span, as many times as there are slopes, outside of them; and nothing at all
    where each point has its own, for then there are more units than points. Pieces that touch θ do so at any distance:
    where the slopes draw together as the distance shrinks, f is merely curved, and nothing is excused.
    """
    suspected = np.flatnonzero(outcome == Outcome.MISMATCH)
    probed = suspected[:PROBES]
    if not len(probed):
        return outcome
    entries = which[probed]
    distance = min(_nearby_distance(check), float(np.min(estimates.step[probed])) / 8)
    far, _ = _slopes_nearby(check, nearby, entries, distance)
    near, noise = _slopes_nearby(check, nearby, entries, distance / 16)
    persistent = np.ptp(near, axis=0) > np.maximum(np.ptp(far, axis=0) / 4, 4 * noise)
    a_piece, a_sum = _chosen_by(check.analytic[entries], near, noise)
    if persistent.any() and check.nearby_analytic is not None:
        right, wrong = _found_nearby(check, entries, distance)
        a_piece, a_sum = a_piece & ~wrong, (a_sum | right) & ~wrong
    outcome[probed[persistent & a_sum]] = Outcome.UNDECIDED
    outcome[probed[persistent & a_piece]] = Outcome.KINK
    if not np.any(outcome[probed] == Outcome.MISMATCH):
        outcome[suspected[PROBES:]] = Outcome.UNDECIDED
    return outcome


def judge_undecided_nearby(check: EntryCheck, results: EntryResults) -> None:
    """With many kinks at θ itself no two steps agree; a mistake in the backward shows beside θ, too."""
    undecided = np.flatnonzero(results.outcome == Outcome.UNDECIDED)
    if check.nearby is None or check.nearby_analytic is None or not len(undecided):
        return
    entries = results.worst_first(check.analytic, undecided)[:PROBES]
    _, wrong = _found_nearby(check, entries, _nearby_distance(check))
    results.outcome[entries[wrong]] = Outcome.MISMATCH


def _nearby_distance(check: EntryCheck) -> float:
    """How far off points near θ are: 1e-5 in float64."""
    return float(check.noise.epsilon**0.32)


def _chosen_by(analytic: Floats, near: Floats, noise: Floats) -> tuple[Flags, Flags]:
    """Whether the gradient could be that of a piece of f next to θ, or a sum over units that chose different pieces."""
    low, high, span = near.min(axis=0), near.max(axis=0), np.ptp(near, axis=0)
    pieces = _pieces(near, noise)
    within = (low - pieces * span <= analytic) & (analytic <= high + pieces * span)
    return (low <= analytic) & (analytic <= high), (pieces > 2) & (within | (pieces == NEARBY_POINTS))


def _pieces(slopes: Floats, noise: Floats) -> Indices:
    """How many different slopes, beyond their noise, each function has among those of nearby points."""
    return np.asarray(1 + np.sum(np.diff(np.sort(slopes, axis=0), axis=0) > 4 * noise, axis=0))


def _found_nearby(check: EntryCheck, entries: Indices, distance: float) -> tuple[Flags, Flags]:
    """Whether the gradient is right at some of the points next to θ, and whether it is wrong at all of them."""
    outcomes = np.array(
        [refined(check.at_nearby_point(k, distance), entries, check.unit[entries])[1] for k in range(NEARBY_GRADIENTS)]
    )
    return (outcomes == Outcome.MATCH).any(axis=0), (outcomes == Outcome.MISMATCH).all(axis=0)


def _slopes_nearby(
    check: EntryCheck, nearby: NearbySampler, entries: Indices, distance: float
) -> tuple[Floats, Floats]:
    """Centered differences of f at points near θ, shape (NEARBY_POINTS, K), and their largest error bar, (K,)."""
    stencil = Stencil(distance / 8, 0)
    pairs = [
        through_stencil(nearby(k, distance), entries, check.unit[entries], stencil, check.noise)
        for k in range(NEARBY_POINTS)
    ]
    return np.array([slopes for slopes, _ in pairs]), np.max([error_bar for _, error_bar in pairs], axis=0)
