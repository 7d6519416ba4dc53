"""Judges a whole gradient: every entry by one centered difference, every disagreement on a ladder of steps.

A disagreement is not yet a mistake: the step may be too large (truncation, a kink crossed) or too small (roundoff). An
entry is called wrong only if the derivatives of two ladders agree and no slope of f could be the gradient on trial.
"""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Indices
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.verdicts.entry_check import ACCUSATION, EntryCheck, EntryResults, Outcome
from torch_gradcheck.verdicts.kinks import excuse_hidden_kinks, judge_undecided_nearby
from torch_gradcheck.verdicts.refine import refined
from torch_gradcheck.verdicts.step_choice import NONE_YET, chosen_stencil

BATCH = 16
"""How many disagreeing entries are first refined together. Later batches are of 64: the first had no mistake."""

SECOND_LADDER = 0.61
"""Unit of the second ladder, in units of the first. It is no power of two, so that the two share no step."""


def judge_gradient(check: EntryCheck, previous_stencil: Stencil | None) -> EntryResults:
    """Judges every entry of the gradient on trial.

    Args:
        check: the gradient on trial and the functions it should be the gradient of.
        previous_stencil: the stencil that suited the tensor before; tried where the default step drowns in noise.
    """
    everything = np.arange(len(check.analytic), dtype=np.int64)
    stencil, differenced = (
        chosen_stencil(check, previous_stencil) if len(everything) else (Stencil(first_step(check.noise), 0), NONE_YET)
    )
    numeric, error_bar, left, right = np.full((4, len(everything)), np.nan)
    numeric[differenced.which], error_bar[differenced.which] = differenced.numeric, differenced.error_bar
    if len(differenced.which) < len(everything):
        rest = np.setdiff1d(everything, differenced.which, assume_unique=True)
        numeric[rest], error_bar[rest] = check.through(stencil, rest)
    results = EntryResults(numeric, error_bar, np.zeros(len(numeric), np.int8), left, right, stencil)
    suspects = np.flatnonzero(~check.agrees(everything, numeric, error_bar))
    if len(suspects):
        _judge_suspects(check, results, suspects)
    return results


def judge_each(check: EntryCheck) -> EntryResults:
    """Refines every entry on the ladder at once. Meant for few entries, which are believed to be wrong."""
    nothing = np.full(len(check.analytic), np.nan)
    results = EntryResults(
        nothing.copy(),
        nothing.copy(),
        np.zeros(len(nothing), np.int8),
        nothing.copy(),
        nothing.copy(),
        Stencil(check.ladder.smallest, 0),
    )
    _judge_on_ladder(check, results, np.arange(len(nothing), dtype=np.int64))
    return results


def _judge_suspects(check: EntryCheck, results: EntryResults, suspects: Indices) -> None:
    """Refines disagreeing entries on the ladder, a batch at a time, until a mistake is confirmed or none is left.

    One confirmed mistake makes the tensor wrong. The remaining suspects are then judged by one more step each, so that
    a failing tensor costs only a few times as much as a passing one.
    """
    not_finite = suspects[~np.isfinite(check.analytic[suspects])]
    results.outcome[not_finite] = Outcome.MISMATCH
    waiting = results.worst_first(check.analytic, suspects[np.isfinite(check.analytic[suspects])])
    size = BATCH
    while len(waiting):
        batch, waiting, size = waiting[:size], waiting[size:], 4 * BATCH
        _judge_on_ladder(check, results, batch)
        if len(waiting) and np.any(results.outcome[batch] == Outcome.MISMATCH):
            _count_by_second_step(check, results, waiting)
            return
    judge_undecided_nearby(check, results)


def _judge_on_ladder(check: EntryCheck, results: EntryResults, which: Indices) -> None:
    estimates, outcome = refined(check, which, check.unit[which])
    suspected = np.flatnonzero(outcome == Outcome.MISMATCH)
    if len(suspected):
        unit = SECOND_LADDER * check.unit[which[suspected]]
        again, second = refined(check.by_eager_engine(), which[suspected], unit)
        confirmed = second == Outcome.MISMATCH
        consistent = (
            np.abs(again.central - estimates.central[suspected]) <= again.error_bar + estimates.error_bar[suspected]
        )
        outcome[suspected[~(confirmed & consistent)]] = Outcome.UNDECIDED
        if check.nearby is not None:
            outcome = excuse_hidden_kinks(check, check.nearby, which, outcome, estimates)
    margin = estimates.error_bar + estimates.jump_error_bar
    low = np.minimum(estimates.left, estimates.right) - margin
    high = np.maximum(estimates.left, estimates.right) + margin
    numeric = np.where(outcome == Outcome.KINK, np.clip(check.analytic[which], low, high), estimates.central)
    results.numeric[which], results.error_bar[which] = numeric, estimates.error_bar
    results.left[which], results.right[which] = estimates.left, estimates.right
    results.outcome[which] = outcome


def _count_by_second_step(check: EntryCheck, results: EntryResults, which: Indices) -> None:
    """Judges suspects of a wrong tensor: MISMATCH if a second step gives the same derivative, else UNDECIDED."""
    stencil = Stencil(results.stencil.step * SECOND_LADDER, results.stencil.order)
    numeric, error_bar = check.through(stencil, which)
    both = results.error_bar[which] + error_bar
    off = np.abs(check.analytic[which] - numeric)
    steady = np.abs(results.numeric[which] - numeric) <= both + off / 10
    wrong = steady & ~check.agrees(which, numeric, both, margin=ACCUSATION)
    results.outcome[which] = np.where(wrong, Outcome.MISMATCH, Outcome.UNDECIDED)
