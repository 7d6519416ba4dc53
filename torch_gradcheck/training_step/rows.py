"""From a judged `.grad` to the row of its parameter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torch_gradcheck.diagnosis.kind.wrong_map import wrong_map
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, ParameterReport, Status, Verdict
from torch_gradcheck.training_step.diagnosis import NEVER_REACHED, step_evidence
from torch_gradcheck.training_step.judge import Judged
from torch_gradcheck.verdicts.rows import compared_row, frozen_row, ratio_of

MAY_MOVE = "rounding in the training step's precision may move a right gradient"

MAY_HAVE_HELD = (
    ".grad is not the gradient of this step alone, which is right where an earlier backward has left something in it: "
    "set .grad of this input to None before the step's forward"
)
"""Why a `.grad` that is off is not called wrong."""

WORTH_TELLING = 0.01
"""The share of its norm from which the rounding bar of a match is told."""

RESOLVED = 1.0
"""`.grad` counts as a match only if the rounding bar is below this share of its norm. At 1, a missing or doubled
gradient would have been seen."""


def judged_row(entry: ThetaEntry, judged: Judged, diagnosis: Diagnosis | None) -> ParameterReport:
    """The row of a `.grad` that was compared with the right gradient."""
    row = compared_row(entry, judged.trial, tolerance=np.inf)
    if row.status is Status.MISMATCH:
        return replace(row, diagnosis=diagnosis, map=wrong_map(step_evidence(entry, judged.trial)))
    size = float(np.linalg.norm(judged.trial.results.numeric))
    unknown = float(np.linalg.norm(judged.trial.results.error_bar - judged.bars.entry))
    says_something = row.status is Status.MATCH or (row.status is Status.FLAT and size > unknown)
    if not says_something:
        return row
    if judged.bars.norm <= RESOLVED * size:
        ratio, hidden = ratio_of(judged.trial), hidden_share(judged)
        reason = f"{MAY_MOVE} by {hidden:.0%} of its size, and smaller mistakes hide in that" if hidden else ""
        return replace(row, status=Status.MATCH, reason=reason, relative_error=ratio, verdict=Verdict.of(ratio))
    how_much = f"by {judged.bars.norm / size:.0%} of its size" if judged.bars.norm < np.inf else "without limit"
    return replace(row, status=Status.UNDECIDED, reason=f"{MAY_MOVE} {how_much}")


def hidden_share(judged: Judged) -> float:
    """The share of a gradient that is not wrong in which mistakes may hide; 0 where it is not worth telling."""
    size = float(np.linalg.norm(judged.trial.results.numeric))
    matches = not judged.is_wrong and WORTH_TELLING * size < judged.bars.norm <= RESOLVED * size
    return judged.bars.norm / size if matches else 0.0


def unjudged_row(entry: ThetaEntry, left: AnalyticGradient, why: str, missing: bool) -> ParameterReport:
    """The row of a `.grad` with nothing to compare it with: NaN, infinity and a missing gradient are wrong anyway.

    Args:
        entry: the parameter.
        left: its `.grad`.
        why: the reason why it cannot be judged.
        missing: `.grad` is None, and J depends on the parameter whatever random numbers are drawn.
    """
    row = replace(frozen_row(entry), status=Status.UNDECIDED, reason=why)
    count = len(left.values)
    infinite = int(np.sum(~np.isfinite(left.values)))
    if infinite:
        reason = f"{infinite} of {count} coordinates {'is' if infinite == 1 else 'are'} not finite"
        diagnosis = Diagnosis(DiagnosisKind.UNKNOWN, f".grad holds NaN or infinity: {reason}")
        return _wrong_row(row, np.nan, count, infinite, reason, diagnosis)
    if missing:
        reason = f"None: {NEVER_REACHED}"
        diagnosis = Diagnosis(DiagnosisKind.MISSING, f".grad is {reason}; J depends on it whatever is drawn")
        return _wrong_row(row, 1.0, count, count, f".grad is {reason}", diagnosis)
    return row


def accumulated_maybe(row: ParameterReport) -> ParameterReport:
    """The row of a `.grad` that may have held something before the step: where it is off, no more is known."""
    if row.status is not Status.MISMATCH:
        return row
    plain = ParameterReport(row.name, row.aliases, row.shape, row.numel, Status.UNDECIDED, MAY_HAVE_HELD)
    return replace(plain, role=row.role, evaluations=row.evaluations, seconds=row.seconds)


def _wrong_row(
    row: ParameterReport, ratio: float, checked: int, mismatched: int, reason: str, diagnosis: Diagnosis
) -> ParameterReport:
    """The row of a `.grad` that is wrong whatever it should be."""
    return replace(
        row,
        status=Status.MISMATCH,
        reason=reason,
        relative_error=ratio,
        verdict=Verdict.WORRY,
        checked=checked,
        mismatched=mismatched,
        diagnosis=diagnosis,
    )
