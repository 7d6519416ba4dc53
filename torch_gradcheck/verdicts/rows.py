"""From the trial of a parameter to its row in the report: status, figures and worst coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from torch_gradcheck.arrays import blocks
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.implicit_draws import upstream_of_draws
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.second_order import Slope
from torch_gradcheck.objective.theta import Theta, ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status, Verdict
from torch_gradcheck.reporting.words import LossWords, listed, noun, tolerance_in_words
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.ratio import relative_error, relative_error_and_noise, relative_error_over
from torch_gradcheck.verdicts.shown_entries import STATUS, coordinates_of, furthest_entries, how_far_off, pairs_of
from torch_gradcheck.verdicts.trial import ParameterTrial

LARGER_TOLERANCES = (1e-4, 1e-3, 1e-2)
"""The tolerances that are suggested where a smaller one leaves a gradient undecided."""

MARGIN = 3.0
"""A tolerance is suggested that is at least 3 times the error that has to pass."""

JOINTLY = (
    ": J has a kink along each of them, but only one slope along a direction through them all, "
    "and their gradient has another"
)
"""How a reason goes on where no single coordinate contradicts the gradient."""


def over_theta(rows: Sequence[ParameterReport], trials: Mapping[int, ParameterTrial]) -> float | None:
    """Ng's ratio over the tensors that were decided; None where none was.

    Args:
        rows: one for every parameter.
        trials: of their gradients, by the position of the row.
    """
    decided = [trial for position, trial in trials.items() if rows[position].status.is_decided]
    if not decided:
        return None
    with np.errstate(all="ignore"):
        return relative_error_over((trial.analytic, trial.results.numeric) for trial in decided)


def ratio_of(trial: ParameterTrial) -> float:
    """Ng's ratio over one tensor."""
    with np.errstate(all="ignore"):
        return relative_error(trial.analytic, trial.results.numeric)


def frozen_row(entry: ThetaEntry) -> ParameterReport:
    """The row of a parameter whose `requires_grad` is False."""
    return ParameterReport(
        name=entry.name,
        aliases=entry.aliases,
        shape=entry.shape,
        numel=entry.parameter.numel(),
        status=Status.FROZEN,
        reason="requires_grad is False",
        role=entry.role,
    )


def compared_row(entry: ThetaEntry, trial: ParameterTrial, tolerance: float) -> ParameterReport:
    """The row of a parameter that was tried coordinate by coordinate; `tolerance` is the largest ratio that passes."""
    results = trial.results
    with np.errstate(all="ignore"):
        ratio, noise = relative_error_and_noise(trial.analytic, results.numeric, results.error_bar)
    worst = furthest_entries(trial)
    status, reason = _status(entry.role, trial, ratio, tolerance)
    return ParameterReport(
        name=entry.name,
        aliases=entry.aliases,
        shape=entry.shape,
        numel=entry.parameter.numel(),
        status=status,
        reason=reason,
        relative_error=ratio if status.has_ratio else None,
        verdict=Verdict.of(ratio) if status.has_ratio else None,
        max_abs_error=_largest_difference(trial),
        noise=float(np.max(results.error_bar, initial=0.0)),
        eps=results.stencil.step,
        checked=len(trial.analytic),
        mismatched=int(np.sum(results.outcome == Outcome.MISMATCH)),
        worst=coordinates_of(entry, trial, worst),
        evaluations=trial.evaluations,
        seconds=trial.seconds,
        role=entry.role,
        relative_noise=noise,
        pairs=pairs_of(trial, worst),
    )


def _largest_difference(trial: ParameterTrial) -> float:
    with np.errstate(all="ignore"):
        return float(np.max([np.max(how_far_off(trial, block)) for block in blocks(len(trial.analytic))], initial=0.0))


def _status(role: Role, trial: ParameterTrial, ratio: float, tolerance: float) -> tuple[Status, str]:
    """The status of the whole tensor and the reason for it in one sentence, "" for a match."""
    results, count = trial.results, len(trial.analytic)
    number = {outcome: int(np.sum(results.outcome == outcome)) for outcome in STATUS}
    if number[Outcome.MISMATCH]:
        wrong = number[Outcome.MISMATCH]
        how = JOINTLY if trial.jointly else ""
        return Status.MISMATCH, f"{wrong} of {count} coordinates {'is' if wrong == 1 else 'are'} wrong{how}"
    if _is_flat(trial):
        return _flat_or_unused(role, trial)
    if trial.by_convention:
        return Status.UNDECIDED, (
            f"at {trial.by_convention} of {count} coordinates several kinks of J meet; the gradient adds up one slope "
            f"chosen for each, and is none of J. {_what_moves(role)} checks away from there"
        )
    if number[Outcome.UNDECIDED]:
        return Status.UNDECIDED, (
            f"at {number[Outcome.UNDECIDED]} of {count} coordinates no two steps agree on a derivative "
            f"({_why_apart(trial)}){_would_decide(_needed(trial, ratio), tolerance)}"
        )
    if ratio > tolerance:
        return Status.UNDECIDED, _why_unresolved(trial, ratio, tolerance)
    if number[Outcome.KINK]:
        return Status.KINK, (
            f"J is not differentiable along {number[Outcome.KINK]} of {count} coordinates; "
            "there the gradient lies between the one-sided slopes"
        )
    return Status.MATCH, ""


def _what_moves(role: Role) -> str:
    """What a check away from θ is asked for by."""
    return "Another argument" if role is Role.ARGUMENT else "perturb=0.1"


def _is_flat(trial: ParameterTrial) -> bool:
    return all(_is_flat_in(trial, block) for block in blocks(len(trial.analytic)))


def _is_flat_in(trial: ParameterTrial, block: slice) -> bool:
    results, bar = trial.results, trial.results.error_bar[block]
    within = (np.abs(trial.analytic[block]) <= bar) & (np.abs(results.numeric[block]) <= bar)
    return bool(np.all(within & (results.outcome[block] == Outcome.MATCH)))


def _flat_or_unused(role: Role, trial: ParameterTrial) -> tuple[Status, str]:
    results = trial.results
    if not len(results.numeric):
        return Status.FLAT, "it has no entries"
    if not trial.reached and not np.any(results.numeric):
        reaches = "no output reaches it" if role is Role.ARGUMENT else "the loss does not reach it"
        return Status.UNUSED, f"{reaches}, and J does not change with it"
    error_bar = float(np.max(results.error_bar))
    return Status.FLAT, (
        f"both sides are zero to within {error_bar:.0e}: nothing was proven, a wrong backward would look the same"
    )


def _why_apart(trial: ParameterTrial) -> str:
    """What keeps the steps of undecided coordinates from agreeing on a derivative."""
    numeric = trial.results.numeric[trial.results.outcome == Outcome.UNDECIDED]
    if np.isnan(numeric).all():
        return "J is NaN or infinite a step away from θ"
    outside = "" if np.isfinite(numeric).all() else ", or J that is NaN or infinite a step away"
    return f"noise of J, a jump, or many kinks close by{outside}"


def _why_unresolved(trial: ParameterTrial, ratio: float, tolerance: float) -> str:
    norms = float(np.linalg.norm(trial.analytic) + np.linalg.norm(trial.results.numeric))
    error_bar = float(np.linalg.norm(trial.results.error_bar)) / norms
    if error_bar < ratio:
        why = (
            f"the relative error {ratio:.0e} is above the tolerance {tolerance:.0e}, by no more than the gradient was "
            "rounded"
        )
    else:
        why = (
            f"the noise of J hides errors below {error_bar:.0e} of the gradient, and the relative error is {ratio:.0e}"
        )
    return why + _would_decide(max(ratio, error_bar / MARGIN), tolerance)


def _needed(trial: ParameterTrial, ratio: float) -> float:
    """The relative error that would have to pass for every entry to agree, and the tensor as a whole."""
    results = trial.results
    undecided = results.outcome == Outcome.UNDECIDED
    analytic, numeric, error_bar = (
        values[undecided] for values in (trial.analytic, results.numeric, results.error_bar)
    )
    with np.errstate(all="ignore"):
        excess = np.maximum(np.abs(analytic - numeric) - error_bar, 0.0)
        relative = np.where(excess > 0, excess / (np.abs(analytic) + np.abs(numeric)), 0.0)
    return float(max(ratio, np.max(np.where(np.isfinite(error_bar), relative, np.inf), initial=0.0)))


def _would_decide(needed: float, tolerance: float) -> str:
    """The rest of a sentence, naming a larger tolerance at which the gradient would be decided; "" without one."""
    enough = [larger for larger in LARGER_TOLERANCES if larger > tolerance and larger >= MARGIN * needed]
    if not enough:
        return ""
    return f"; tolerance={tolerance_in_words(enough[0])} would decide it"


DRAWN = (
    "J draws it from a gamma or Dirichlet distribution, whose gradient is right on average only: "
    "differences of one draw say nothing about it"
)


CONSTANT = (
    "the gradient of J does not change with it, as where J is linear in it: nothing was proven, a wrong double "
    "backward would look the same"
)


def excused(rows: Sequence[ParameterReport], objective: Objective, theta: Theta) -> list[ParameterReport]:
    """The rows, with a mismatch made UNDECIDED where its gradient comes through a gamma or Dirichlet draw."""
    if not [row for row in rows if row.status is Status.MISMATCH]:
        return list(rows)
    upstream = upstream_of_draws(objective)
    return [
        replace(row, status=Status.UNDECIDED, reason=DRAWN, mismatched=0)
        if row.status is Status.MISMATCH and id(entry.parameter) in upstream
        else row
        for row, entry in zip(rows, theta, strict=True)
    ]


def made_undecided(row: ParameterReport, reason: str) -> ParameterReport:
    """The row made UNDECIDED, its coordinates too, without a kind of mistake and its places."""
    return replace(
        row,
        status=Status.UNDECIDED,
        reason=reason,
        mismatched=0,
        worst=[replace(each, status=Status.UNDECIDED) for each in row.worst],
        diagnosis=None,
        map=None,
        pairs=row.pairs and row.pairs.none_wrong(),
    )


def linear_in(slope: Slope | None, rows: Sequence[ParameterReport], theta: Theta) -> list[ParameterReport]:
    """The rows of a check of second order, with unused parameters FLAT that J depends on: its gradient does not."""
    reached = set() if slope is None else slope.reached
    return [
        replace(row, status=Status.FLAT, reason=CONSTANT)
        if row.status is Status.UNUSED and id(entry.parameter) in reached
        else row
        for row, entry in zip(rows, theta, strict=True)
    ]


def refuse_unreached(rows: Sequence[ParameterReport], words: LossWords) -> None:
    """Raises InvalidRequestError where J has to do with none of the parameters that were to be checked.

    A closure that captures what the model has put out before has nothing to do with the model.
    """
    checked = [row for row in rows if row.status.is_checked]
    parameters = [row for row in checked if row.role is not Role.CAPTURED]
    checked = parameters or checked
    if {row.status for row in checked} != {Status.UNUSED}:  # no generator: it would swallow a Ctrl-C
        return
    called = noun([row.role for row in checked], len(checked))
    these = f"the one checked {called}" if len(checked) == 1 else f"any of the {len(checked)} checked {called}"
    reached = "it neither" if len(checked) == 1 else "none of them"
    raise InvalidRequestError(
        f"{words.short} does not depend on {these} ({listed([row.name for row in checked])}), and autograd reaches "
        f"{reached}: there is no gradient to check. {words.must_be}"
    )


def on_unproven(rows: Sequence[ParameterReport]) -> str:
    """The note that names the parameters of which nothing was proven; "" where there are none."""
    unproven = [row.name for row in rows if row.status.is_named_as_unproven]
    if not unproven:
        return ""
    return f"not proven right: {listed(unproven)}; {'its row says' if len(unproven) == 1 else 'their rows say'} why"
