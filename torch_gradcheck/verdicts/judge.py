"""Judges a whole gradient: every entry by one centered difference, every disagreement on a ladder of steps.

A disagreement is not yet a mistake: the step may be too large (truncation, a kink crossed) or too small (roundoff). An
entry is called wrong only if the derivatives of two ladders agree and no slope of f could be the gradient on trial.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.richardson import Estimates, Stencil
from torch_gradcheck.verdicts.entry_check import CONTRADICTION, EntryCheck, EntryResults, Outcome
from torch_gradcheck.verdicts.kinks import excuse_hidden_kinks, judge_undecided_nearby
from torch_gradcheck.verdicts.measurement import Measurement, better_measured, measured
from torch_gradcheck.verdicts.refine import on_ladder, refined

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
    return judge_suspects(better_measured(measured(check, previous_stencil)))


def judge_suspects(measurement: Measurement, first_batch: int = BATCH) -> EntryResults:
    """Judges a gradient that was measured: looks closely at the entries that disagree, a batch at a time.

    One confirmed mistake makes the tensor wrong. The remaining suspects are then judged by one more step each, so that
    a failing tensor costs only a few times as much as a passing one.

    Args:
        measurement: of the gradient.
        first_batch: how many entries are looked at first.
    """
    check, results = measurement.check, measurement.results
    waiting = _finite_suspects(measurement)
    size = first_batch
    while len(waiting):
        batch, waiting, size = waiting[:size], waiting[size:], 4 * BATCH
        _judge_on_ladder(check, results, batch)
        if len(waiting) and np.any(results.outcome[batch] == Outcome.MISMATCH):
            _count_by_second_step(measurement, waiting)
            return results
    judge_undecided_nearby(check, results)
    return results


def mark_wrong(measurement: Measurement, wrong: Indices, witness: Floats | None) -> EntryResults:
    """Judges a gradient of which J contradicts some entries; the other suspects are judged by one more step each.

    Args:
        measurement: of the gradient.
        wrong: the entries that are contradicted.
        witness: shape (N,), another gradient of J; where that differs from the differences, error bars are as wide.
    """
    results = measurement.results
    others = np.setdiff1d(_finite_suspects(measurement), wrong)
    if len(others):
        _count_by_second_step(measurement, others)
    results.outcome[wrong] = Outcome.MISMATCH
    if witness is not None:
        apart = np.abs(witness[wrong] - results.numeric[wrong])
        results.error_bar[wrong] = np.maximum(results.error_bar[wrong], apart)
    return results


def _finite_suspects(measurement: Measurement) -> Indices:
    """The suspects that are finite, those first that a kink explains least; those that are not are marked as wrong."""
    check, results = measurement.check, measurement.results
    if not len(measurement.suspects):
        return measurement.suspects
    finite = np.isfinite(check.analytic[measurement.suspects])
    results.outcome[measurement.suspects[~finite]] = Outcome.MISMATCH
    suspects = measurement.suspects[finite]
    off = np.abs(check.analytic[suspects] - results.numeric[suspects])
    jump = np.abs(check.jump(measurement.differences.at(suspects)))
    unexplained = np.nan_to_num(off - jump / 2, nan=np.inf)
    return suspects[np.argsort(-unexplained, kind="stable")]


def judge_each(check: EntryCheck) -> EntryResults:
    """Refines every entry on the ladder at once. Meant for few entries, which are believed to be wrong."""
    results = _nothing_yet(check)
    _judge_on_ladder(check, results, np.arange(len(check.analytic), dtype=np.int64))
    return results


def judge_once(check: EntryCheck) -> EntryResults:
    """Refines every entry on one ladder by the eager engine. Meant for entries of a tensor known to be wrong."""
    results, which = _nothing_yet(check), np.arange(len(check.analytic), dtype=np.int64)
    _keep(check, results, which, *on_ladder(check.by_eager_engine(), which, check.unit))
    return results


def _nothing_yet(check: EntryCheck) -> EntryResults:
    nothing = np.full((4, len(check.analytic)), np.nan)
    numeric, error_bar, left, right = nothing
    outcome = np.zeros(len(check.analytic), np.int8)
    return EntryResults(numeric, error_bar, outcome, left, right, Stencil(check.ladder.smallest, 0))


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
    _keep(check, results, which, estimates, outcome)


def _keep(
    check: EntryCheck, results: EntryResults, which: Indices, estimates: Estimates, outcome: NDArray[np.int8]
) -> None:
    """Writes what was found of `which` into the results; the numeric side of a kink is the slope nearest on trial."""
    margin = estimates.error_bar + estimates.jump_error_bar
    low = np.minimum(estimates.left, estimates.right) - margin
    high = np.maximum(estimates.left, estimates.right) + margin
    numeric = np.where(outcome == Outcome.KINK, np.clip(check.analytic[which], low, high), estimates.central)
    results.numeric[which], results.error_bar[which] = numeric, estimates.error_bar
    results.left[which], results.right[which] = estimates.left, estimates.right
    results.outcome[which] = outcome


def _count_by_second_step(measurement: Measurement, which: Indices) -> None:
    """Judges suspects of a wrong tensor: MISMATCH if a second step gives the same derivative, else UNDECIDED.

    UNDECIDED as well where the one-sided slopes differ by so much that a kink might explain the gradient.
    """
    check, results = measurement.check, measurement.results
    stencil = Stencil(results.stencil.step * SECOND_LADDER, results.stencil.order)
    found = check.through(stencil, which)
    numeric, both = found.central, results.error_bar[which] + found.roundoff
    off = np.abs(check.analytic[which] - numeric)
    steady = np.abs(results.numeric[which] - numeric) <= both + off / 10
    wrong = (
        steady
        & ~check.agrees(which, numeric, both, margin=CONTRADICTION)
        & (np.abs(check.kink(found, measurement.differences.at(which))) <= off)
    )
    results.outcome[which] = np.where(wrong, Outcome.MISMATCH, Outcome.UNDECIDED)
    apart = np.nan_to_num(np.abs(results.numeric[which] - numeric), nan=np.inf, posinf=np.inf)
    results.error_bar[which] = np.where(wrong, results.error_bar[which], np.maximum(results.error_bar[which], apart))
