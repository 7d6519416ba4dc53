"""One report of two checks: of the model's backward, and of the `.grad` that the loop left."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.report import Report


def joined(backward: Report, in_grad: Report) -> Report:
    """One report of both checks: a parameter's row is the worse one, the backward's where they are alike."""
    rows = [_worse(row, in_grad[row.name]) for row in backward]
    ratio = backward.relative_error if backward.mismatches or in_grad.passed else in_grad.relative_error
    found = int(backward.backward_spread > 0)  # its note comes first
    return replace(
        backward,
        parameters=tuple(rows),
        relative_error=ratio,
        evaluations=backward.evaluations + in_grad.evaluations,
        seconds=backward.seconds + in_grad.seconds,
        notes=[*backward.notes[:found], *_notes_on(in_grad), *backward.notes[found:]],
        in_grad=in_grad,
        backward_spread=max(backward.backward_spread, in_grad.backward_spread),
    )


def _worse(row: ParameterReport, left: ParameterReport) -> ParameterReport:
    if row.status is Status.MISMATCH or left.status is not Status.MISMATCH:
        return row
    return replace(left, reason=f".grad: {left.reason}")


def _notes_on(in_grad: Report) -> list[str]:
    """The notes on `.grad`: its rows counted by status, and the reason where some could not be judged."""
    counts = Counter(str(row.status) for row in in_grad if row.status is not Status.FROZEN)
    listed = ", ".join(f"{number} {status}" for status, number in counts.items())
    reasons = [row.reason for row in in_grad if row.status is Status.UNDECIDED]
    undecided = [f".grad could not be judged everywhere: {reasons[0]}"] if reasons else []
    on_trial = in_grad.notes[1:2] if in_grad.backward_spread else in_grad.notes[:1]
    return [f"in .grad, as the training step left it: {listed}", *on_trial, *undecided]


def why_grad_unjudged(report: Report) -> str:
    """The reason why nothing could be said about any `.grad`; "" where something could."""
    rows = [] if report.in_grad is None else [row for row in report.in_grad if row.status is not Status.FROZEN]
    if not rows or any(row.status is not Status.UNDECIDED for row in rows):
        return ""
    return f".grad could not be judged: {rows[0].reason}"
