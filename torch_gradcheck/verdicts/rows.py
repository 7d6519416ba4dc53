"""From the trial of a parameter to its row in the report: status, figures and worst coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.objective.implicit_draws import upstream_of_draws
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta, ThetaEntry
from torch_gradcheck.reporting.facts import Coordinate, ParameterReport, Status, Verdict
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.ratio import relative_error, relative_error_over
from torch_gradcheck.verdicts.trial import ParameterTrial

WORST = 10
"""How many coordinates a row keeps, those furthest off."""

STATUS = {
    Outcome.MATCH: Status.MATCH,
    Outcome.KINK: Status.KINK,
    Outcome.UNDECIDED: Status.UNDECIDED,
    Outcome.MISMATCH: Status.MISMATCH,
}


def over_theta(trials: Iterable[ParameterTrial]) -> float:
    """Ng's ratio over the whole θ, from the trials of all its parameters."""
    with np.errstate(all="ignore"):
        return relative_error_over((trial.analytic, trial.results.numeric) for trial in trials)


def frozen_row(entry: ThetaEntry) -> ParameterReport:
    """The row of a parameter whose `requires_grad` is False."""
    return ParameterReport(
        entry.name, entry.aliases, entry.shape, entry.parameter.numel(), Status.FROZEN, "requires_grad is False"
    )


def compared_row(entry: ThetaEntry, trial: ParameterTrial, tolerance: float) -> ParameterReport:
    """The row of a parameter that was tried coordinate by coordinate; `tolerance` is the largest ratio that passes."""
    analytic, results = trial.analytic, trial.results
    with np.errstate(all="ignore"):
        ratio = relative_error(analytic, results.numeric)
        difference = np.abs(analytic - results.numeric)
    status, reason = _status(trial, ratio, tolerance)
    return ParameterReport(
        name=entry.name,
        aliases=entry.aliases,
        shape=entry.shape,
        numel=entry.parameter.numel(),
        status=status,
        reason=reason,
        relative_error=ratio,
        verdict=Verdict.of(ratio),
        max_abs_error=float(np.max(difference, initial=0.0)),
        noise=float(np.max(results.error_bar, initial=0.0)),
        eps=results.stencil.step,
        checked=len(analytic),
        mismatched=int(np.sum(results.outcome == Outcome.MISMATCH)),
        worst=_worst(entry, trial),
        evaluations=trial.evaluations,
        seconds=trial.seconds,
    )


def _status(trial: ParameterTrial, ratio: float, tolerance: float) -> tuple[Status, str]:
    """The status of the whole tensor and the reason for it in one sentence, "" for a match."""
    results, count = trial.results, len(trial.analytic)
    number = {outcome: int(np.sum(results.outcome == outcome)) for outcome in STATUS}
    if number[Outcome.MISMATCH]:
        wrong = number[Outcome.MISMATCH]
        return Status.MISMATCH, f"{wrong} of {count} coordinates {'is' if wrong == 1 else 'are'} wrong"
    if _is_flat(trial):
        return _flat_or_unused(trial)
    if number[Outcome.UNDECIDED]:
        return Status.UNDECIDED, (
            f"at {number[Outcome.UNDECIDED]} of {count} coordinates no two steps agree on a derivative "
            f"(noise of J, a jump, or many kinks close by)"
        )
    if ratio > tolerance:
        return Status.UNDECIDED, _why_unresolved(trial, ratio, tolerance)
    if number[Outcome.KINK]:
        return Status.KINK, (
            f"J is not differentiable along {number[Outcome.KINK]} of {count} coordinates; "
            "there the gradient lies between the one-sided slopes"
        )
    return Status.MATCH, ""


def _is_flat(trial: ParameterTrial) -> bool:
    results = trial.results
    within = (np.abs(trial.analytic) <= results.error_bar) & (np.abs(results.numeric) <= results.error_bar)
    return bool(np.all(within & (results.outcome == Outcome.MATCH)))


def _flat_or_unused(trial: ParameterTrial) -> tuple[Status, str]:
    results = trial.results
    if not len(results.numeric):
        return Status.FLAT, "it has no entries"
    if not trial.reached and not np.any(results.numeric):
        return Status.UNUSED, "the loss does not reach it, and J does not change with it"
    error_bar = float(np.max(results.error_bar))
    return Status.FLAT, (
        f"both sides are zero to within {error_bar:.0e}: nothing was proven, a wrong backward would look the same"
    )


def _why_unresolved(trial: ParameterTrial, ratio: float, tolerance: float) -> str:
    norms = float(np.linalg.norm(trial.analytic) + np.linalg.norm(trial.results.numeric))
    error_bar = float(np.linalg.norm(trial.results.error_bar)) / norms
    if error_bar < ratio:
        return f"the ratio {ratio:.0e} is above the tolerance {tolerance:.0e}, by no more than the gradient was rounded"
    return f"the noise of J hides errors below {error_bar:.0e} of the gradient; the ratio {ratio:.0e} is within it"


def _worst(entry: ThetaEntry, trial: ParameterTrial) -> list[Coordinate]:
    """The `WORST` coordinates: wrong ones first, and among equal outcomes those furthest off first."""
    with np.errstate(all="ignore"):
        off = np.nan_to_num(np.abs(trial.analytic - trial.results.numeric), nan=np.inf)
    outcome = trial.results.outcome
    candidates = np.concatenate([_largest(off, np.flatnonzero(outcome == value)) for value in STATUS])
    order = np.lexsort((candidates, -off[candidates], -outcome[candidates]))[:WORST]
    return [_coordinate(entry, trial, int(k)) for k in candidates[order]]


def _largest(off: Floats, among: Indices) -> Indices:
    """The `WORST` that are furthest off, the first of equal ones; by partition, since there may be millions."""
    if len(among) <= WORST:
        return among
    least = np.partition(off[among], len(among) - WORST)[len(among) - WORST]
    return np.concatenate([among[off[among] > least], among[off[among] == least][:WORST]])


def _coordinate(entry: ThetaEntry, trial: ParameterTrial, k: int) -> Coordinate:
    results = trial.results
    index, part = entry.locate(int(trial.coordinates[k]))
    outcome = int(results.outcome[k])
    slopes = (float(results.left[k]), float(results.right[k])) if outcome == Outcome.KINK else None
    return Coordinate(
        index,
        float(trial.analytic[k]),
        float(results.numeric[k]),
        float(results.error_bar[k]),
        STATUS[outcome],
        part,
        slopes,
    )


DRAWN = (
    "J draws it from a gamma or Dirichlet distribution, whose gradient is right on average only: "
    "differences of one draw say nothing about it"
)


def excused(rows: Sequence[ParameterReport], objective: Objective, theta: Theta) -> list[ParameterReport]:
    """The rows, with a mismatch made UNDECIDED where its gradient comes through a gamma or Dirichlet draw."""
    if not any(row.status is Status.MISMATCH for row in rows):
        return list(rows)
    upstream = upstream_of_draws(objective)
    return [
        replace(row, status=Status.UNDECIDED, reason=DRAWN, mismatched=0)
        if row.status is Status.MISMATCH and id(entry.parameter) in upstream
        else row
        for row, entry in zip(rows, theta, strict=True)
    ]


def on_unproven(rows: Sequence[ParameterReport]) -> str:
    """The note that names the parameters of which nothing was proven; "" where there are none."""
    unproven = [row.name for row in rows if row.status.is_named_as_unproven]
    if not unproven:
        return ""
    return f"not proven right: {listed(unproven)}; see the reason of each"
