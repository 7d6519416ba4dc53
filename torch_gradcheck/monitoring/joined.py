"""One report of two checks: of the model's backward, and of the `.grad` that the loop left."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.training_step.grad_check import ON_TRIAL
from torch_gradcheck.training_step.regimes import is_left_open


def joined(backward: Report, in_grad: Report) -> Report:
    """One report of both checks: a tensor's row is the worse one, the backward's where they are alike."""
    rows = [_worse(row, in_grad[row.name]) if row.name in in_grad else row for row in backward]
    ratio = backward.relative_error if backward.mismatches or not in_grad.mismatches else in_grad.relative_error
    found = int(backward.backward_spread > 0)  # its note comes first
    return replace(
        backward,
        parameters=tuple(rows),
        relative_error=ratio if any(row.status.is_decided for row in rows) else None,
        evaluations=backward.evaluations + in_grad.evaluations,
        seconds=backward.seconds + in_grad.seconds,
        notes=[*backward.notes[:found], *_notes_on(in_grad), *backward.notes[found:]],
        in_grad=in_grad,
        backward_spread=max(backward.backward_spread, in_grad.backward_spread),
    )


def _worse(row: ParameterReport, left: ParameterReport) -> ParameterReport:
    if row.status is Status.MISMATCH or not (left.status is Status.MISMATCH or is_left_open(left)):
        return row
    return replace(left, reason=f".grad: {left.reason}")


def _notes_on(in_grad: Report) -> list[str]:
    """The notes on `.grad`: its rows counted by status, and the reason where some could not be judged."""
    counts = Counter(str(row.status) for row in in_grad if row.status.is_checked)
    listed = ", ".join(f"{number} {status}" for status, number in counts.items())
    reasons = [row.reason for row in in_grad if row.status is Status.UNDECIDED]
    undecided = [f".grad could not be judged everywhere: {reasons[0]}"] if reasons else []
    own = next((at for at, note in enumerate(in_grad.notes) if note.startswith(ON_TRIAL)), 0)
    of_step, judged = in_grad.notes[int(in_grad.backward_spread > 0) : own], in_grad.notes[own : own + 1]
    return [*of_step, f"in .grad, as the training step left it: {listed}", *judged, *undecided]
