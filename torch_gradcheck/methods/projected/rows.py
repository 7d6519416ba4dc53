"""From the trial of a tensor along directions to its row: that of `verdicts.rows`, with what the directions proved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.verdicts.rows import compared_row
from torch_gradcheck.verdicts.trial import ParameterTrial, Proof


def projected_row(entry: ThetaEntry, trial: ParameterTrial, tolerance: float) -> ParameterReport:
    """The row of a parameter whose gradient was tried along directions."""
    row, proof = compared_row(entry, trial, tolerance), trial.proof
    assert proof is not None, "a trial along directions says what they proved"
    status, reason = _status(row, entry, trial, proof, tolerance)
    return replace(
        row,
        status=status,
        reason=reason,
        directions=proof.directions,
        detectable=_relative(proof.detectable, trial) if proof.directions and status.is_nonzero else float("nan"),
        mismatched=max(row.mismatched, 1) if status is Status.MISMATCH else row.mismatched,
    )


def _status(
    row: ParameterReport, entry: ThetaEntry, trial: ParameterTrial, proof: Proof, tolerance: float
) -> tuple[Status, str]:
    if proof.contradicted and row.status is not Status.MISMATCH:
        return Status.MISMATCH, _sentence(proof.remark, "no single one is far enough off to be told from noise")
    if not proof.directions:
        nothing_wrong_found = row.status in (Status.MATCH, Status.FLAT) and len(trial.coordinates) < len(
            entry.coordinates_on_trial
        )
        return Status.UNDECIDED if nothing_wrong_found else row.status, _sentence(row.reason, proof.remark)
    resolution = _relative(proof.resolution, trial)
    if row.status is Status.MATCH and resolution > tolerance:
        return (
            Status.UNDECIDED,
            f"along random directions J shows only errors above {resolution:.0e} of its gradient",
        )
    return row.status, row.reason


def _relative(length: float, trial: ParameterTrial) -> float:
    """‖error‖ / ‖gradient‖, given ‖error‖ as `length`; infinite for a gradient of zero."""
    gradient = float(np.linalg.norm(trial.results.numeric))
    return length / gradient if gradient else float("inf")


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
