"""Candidates that draw random numbers: they start from the reference's random state, and may draw others all the same.

torch's own operations draw the same numbers on both sides. A kernel with a generator of its own draws others, and is
another function then: what differs says nothing of its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.reference import Reference
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status
from torch_gradcheck.verdicts.rows import made_undecided

OTHER_NUMBERS = 0.05
"""Outputs that differ by more, as Ng's ratio has it, were computed of other random numbers."""

ALIKE = 1e-2
"""Outputs of the same random numbers are a multiple of each other up to this share of them."""

REASON = "both sides draw random numbers, and the outputs do not show that these are the same: nothing can be compared"
REASON_ALONE = "the reference draws random numbers and the candidate none: it computes another function"


def on_draws(candidate: bool, reference: bool) -> str:
    """The note on random numbers; "" where neither side draws any."""
    if not (candidate or reference):
        return ""
    who = (
        "both sides draw" if candidate and reference else f"only the {'candidate' if candidate else 'reference'} draws"
    )
    kernel = (
        "a kernel that draws in an order of its own computes another function: give it the mask, or the numbers, as an "
        "argument"
        if candidate
        else "where they matter the candidate is another function: give both the mask, or the numbers, as an argument"
    )
    return f"{who} random numbers, from the same state of torch's, numpy's and Python's generators; {kernel}"


def beside_other_draws(
    rows: Sequence[ParameterReport], verdicts: Sequence[Judged], candidate: bool, reference: Reference
) -> list[ParameterReport]:
    """The rows, all undecided where the outputs were computed of other random numbers.

    The reference alone may draw, and an output differ in whatever way; or both draw, and the outputs have little in
    common, of which no mistake is the cause.

    Args:
        rows: of the report.
        verdicts: on the same tensors.
        candidate: whether it draws.
        reference: what is known of it.
    """
    outputs = [
        each
        for row, each in zip(rows, verdicts, strict=True)
        if row.role is Role.OUTPUT
        and row.status is Status.MISMATCH
        and not (candidate and _is_comparable(row, each, reference))
    ]
    if not (reference.has_drawn and outputs):
        return list(rows)
    reason = REASON if candidate else REASON_ALONE
    return [made_undecided(row, reason) if row.status.is_decided else row for row in rows]


def _is_comparable(row: ParameterReport, judged: Judged, reference: Reference) -> bool:
    """Whether both sides drew the same numbers, as far as a wrong output shows.

    Where as many were drawn, and an output is a multiple of the right one, the mask is the same, and a factor not.
    Where others were, a multiple may be another random factor.
    """
    if (row.relative_error or 0.0) <= OTHER_NUMBERS:
        return True
    return reference.has_drawn_alike and _is_multiple(judged.compared)


def _is_multiple(each: Compared) -> bool:
    given, right = each.candidate[0], each.right
    if not np.isfinite(given).all() or not np.any(right):
        return False
    factor = np.dot(given, right) / np.dot(right, right)
    return bool(np.linalg.norm(given - factor * right) <= ALIKE * np.linalg.norm(given))
