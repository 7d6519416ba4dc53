"""Tries a whole gradient against centered differences: every entry once, every disagreement on a ladder of steps.

A disagreement is not yet a mistake: the step may be too large (truncation, a kink crossed) or too small (roundoff).
Only an estimate that agrees with itself on two ladders, and leaves no slope of f that the gradient could be, accuses.
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
"""How many disagreeing entries go up the ladder at a time; four times as many where none of the first is a mistake."""

SECOND_LADDER = 0.61
"""The second ladder's unit against the first one's: none of its steps is a step of the first."""


def judge_gradient(question: EntryCheck, carried: Stencil | None) -> EntryResults:
    """Judges every entry of the gradient on trial.

    Args:
        question: what is tried.
        carried: the window that suited the tensor before; tried where the first step drowns in noise.
    """
    everything = np.arange(len(question.analytic), dtype=np.int64)
    window, seen = (
        chosen_stencil(question, carried) if len(everything) else (Stencil(first_step(question.noise), 0), NONE_YET)
    )
    numeric, error, left, right = np.full((4, len(everything)), np.nan)
    numeric[seen.which], error[seen.which] = seen.numeric, seen.error
    if len(seen.which) < len(everything):
        rest = np.setdiff1d(everything, seen.which, assume_unique=True)
        numeric[rest], error[rest] = question.through(window, rest)
    answer = EntryResults(numeric, error, np.zeros(len(numeric), np.int8), left, right, window)
    suspects = np.flatnonzero(~question.agrees(everything, numeric, error))
    if len(suspects):
        _judge_suspects(question, answer, suspects)
    return answer


def judge_each(question: EntryCheck) -> EntryResults:
    """Takes every entry up the ladder at once: for a few that are believed to be wrong."""
    nothing = np.full(len(question.analytic), np.nan)
    answer = EntryResults(
        nothing.copy(),
        nothing.copy(),
        np.zeros(len(nothing), np.int8),
        nothing.copy(),
        nothing.copy(),
        Stencil(question.ladder.smallest, 0),
    )
    _judge_on_ladder(question, answer, np.arange(len(nothing), dtype=np.int64))
    return answer


def _judge_suspects(question: EntryCheck, answer: EntryResults, suspects: Indices) -> None:
    """Takes disagreeing entries up the ladder, a batch at a time, until a mistake is confirmed or none is left.

    Once one is confirmed, the tensor is wrong; what remains is only counted, by one more step each, so that a failure
    costs no more than a few times a pass.
    """
    not_finite = suspects[~np.isfinite(question.analytic[suspects])]
    answer.outcome[not_finite] = Outcome.MISMATCH
    waiting = answer.worst_first(question.analytic, suspects[np.isfinite(question.analytic[suspects])])
    size = BATCH
    while len(waiting):
        batch, waiting, size = waiting[:size], waiting[size:], 4 * BATCH
        _judge_on_ladder(question, answer, batch)
        if len(waiting) and np.any(answer.outcome[batch] == Outcome.MISMATCH):
            _count_by_second_step(question, answer, waiting)
            return
    judge_undecided_nearby(question, answer)


def _judge_on_ladder(question: EntryCheck, answer: EntryResults, which: Indices) -> None:
    estimates, outcome = refined(question, which, question.unit[which])
    accused = np.flatnonzero(outcome == Outcome.MISMATCH)
    if len(accused):
        unit = SECOND_LADDER * question.unit[which[accused]]
        again, second = refined(question.to_second(), which[accused], unit)
        confirmed = second == Outcome.MISMATCH
        consistent = np.abs(again.central - estimates.central[accused]) <= again.error + estimates.error[accused]
        outcome[accused[~(confirmed & consistent)]] = Outcome.UNDECIDED
        if question.nearby is not None:
            outcome = excuse_hidden_kinks(question, question.nearby, which, outcome, estimates)
    bar = estimates.error + estimates.jump_error
    low, high = np.minimum(estimates.left, estimates.right) - bar, np.maximum(estimates.left, estimates.right) + bar
    numeric = np.where(outcome == Outcome.KINK, np.clip(question.analytic[which], low, high), estimates.central)
    answer.numeric[which], answer.error[which] = numeric, estimates.error
    answer.left[which], answer.right[which] = estimates.left, estimates.right
    answer.outcome[which] = outcome


def _count_by_second_step(question: EntryCheck, answer: EntryResults, which: Indices) -> None:
    """Entries of a tensor known to be wrong: wrong too if another step gives the same derivative, else undecided."""
    window = Stencil(answer.window.step * SECOND_LADDER, answer.window.order)
    numeric, error = question.through(window, which)
    both = answer.error[which] + error
    off = np.abs(question.analytic[which] - numeric)
    steady = np.abs(answer.numeric[which] - numeric) <= both + off / 10
    wrong = steady & ~question.agrees(which, numeric, both, margin=ACCUSATION)
    answer.outcome[which] = np.where(wrong, Outcome.MISMATCH, Outcome.UNDECIDED)
