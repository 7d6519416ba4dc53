"""Candidates that draw random numbers: they start from the reference's random state, and may draw others all the same.

torch's own operations draw the same numbers on both sides. A kernel with a generator of its own draws others, and is
another function then: what differs says nothing of its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch_gradcheck.reporting.facts import ParameterReport, Role, Status

OTHER_NUMBERS = 0.05
"""Outputs that differ by more, as Ng's ratio has it, were computed of other random numbers."""

REASON = "both sides draw random numbers, and seem to have drawn others: nothing can be compared"


def on_draws(candidate: bool, reference: bool) -> str:
    """The note on random numbers; "" where neither side draws any."""
    if not (candidate or reference):
        return ""
    who = (
        "both sides draw" if candidate and reference else f"only the {'candidate' if candidate else 'reference'} draws"
    )
    return (
        f"{who} random numbers, from the same state of torch's, numpy's and Python's generators; a kernel that draws "
        "in an order of its own computes another function: give it the mask, or the numbers, as an argument"
    )


def beside_other_draws(rows: Sequence[ParameterReport], draw: bool) -> list[ParameterReport]:
    """The rows, those that are wrong made undecided where both sides draw, and the outputs have little in common."""
    outputs = [row for row in rows if row.role is Role.OUTPUT and row.status is Status.MISMATCH]
    if not draw or not [row for row in outputs if not (row.relative_error or 0.0) <= OTHER_NUMBERS]:
        return list(rows)
    return [
        replace(row, status=Status.UNDECIDED, reason=REASON, mismatched=0, diagnosis=None, map=None)
        if row.status is Status.MISMATCH
        else row
        for row in rows
    ]
