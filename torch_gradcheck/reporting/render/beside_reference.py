"""Headline and summary of a report on a candidate beside a reference: gradients, outputs, and the reference itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_gradcheck.reporting.facts import Facts, ParameterReport, Role, Status
from torch_gradcheck.reporting.printable import printable
from torch_gradcheck.reporting.render.figures import figure
from torch_gradcheck.reporting.words import counted, listed, times


def outcome_beside(facts: Facts) -> str:
    """Returns what became of the gradients and of the outputs, a wrong reference first."""
    gradients = [row for row in facts if row.role is not Role.OUTPUT]
    outputs = [row for row in facts if row.role is Role.OUTPUT]
    return ", ".join(filter(None, [_of_reference(facts), _of_gradients(gradients, facts), _of_outputs(outputs)]))


def _of_reference(facts: Facts) -> str:
    if facts.reference is None or not facts.has_wrong_reference:
        return ""
    total = counted([row.role for row in facts.reference])
    return f"the REFERENCE is WRONG in {len(facts.reference.mismatches)} of {total}"


def _of_gradients(rows: Sequence[ParameterReport], facts: Facts) -> str:
    if not rows:
        return ""
    total, wrong, right = counted([row.role for row in rows]), _number(rows, Status.MISMATCH), _proven(rows)
    if wrong:
        return f"gradients WRONG in {wrong:,} of {total}"
    if right:
        return f"gradients right in {printable(facts.dtype)}: {right:,} of {total}"
    return f"no gradient proven right: 0 of {total}"


def _of_outputs(rows: Sequence[ParameterReport]) -> str:
    if not rows:
        return ""
    called = "output" if len(rows) == 1 else "outputs"
    if wrong := _number(rows, Status.MISMATCH):
        return f"{called} WRONG" + (f" in {wrong:,} of {len(rows):,}" if len(rows) > 1 else "")
    right = _proven(rows)
    if right == len(rows):
        return f"{called} right"
    return f"outputs right: {right:,} of {len(rows):,}" if right else f"no {called} proven right"


def _number(rows: Sequence[ParameterReport], status: Status) -> int:
    return sum(row.status is status for row in rows)


def _proven(rows: Sequence[ParameterReport]) -> int:
    return sum(row.status.is_proven for row in rows)


def tightness(facts: Facts) -> str:
    """Returns how tight the whole is: the largest of the rows' errors in multiples of what the dtype loses."""
    infinite = [row for row in facts if row.status is Status.MISMATCH and not math.isfinite(row.max_abs_error)]
    if infinite:
        return f"errors that are not finite ({listed([printable(row.name) for row in infinite])})"
    decided = [row for row in facts if row.status.is_decided]
    if not decided or facts.relative_error is None:
        return "no relative error: nothing was decided"
    return f"relative error {figure(facts.relative_error)}, {_beside_rounding(decided, printable(facts.dtype))}"


def _beside_rounding(decided: Sequence[ParameterReport], dtype: str) -> str:
    """The largest multiple of what the dtype loses; where a wrong tensor has none, or no tensor has, that."""
    without = [row for row in decided if math.isnan(row.rounding_ratio)]
    wrong = [row for row in without if row.status is Status.MISMATCH]
    told = wrong or (without if len(without) == len(decided) else [])
    if told:
        return f"where the reference loses nothing in {dtype} ({listed([printable(row.name) for row in told])})"
    largest = max([row for row in decided if not math.isnan(row.rounding_ratio)], key=lambda row: row.rounding_ratio)
    dtypes, verb = (dtype.replace(", ", " and "), "lose") if ", " in dtype else (dtype, "loses")
    return f"at most {times(largest.rounding_ratio)} times what {dtypes} {verb} ({printable(largest.name)})"


def summary_beside(facts: Facts, reference: str, effort: str) -> tuple[str, ...]:
    """Returns the lines below the headline.

    Args:
        facts: of the candidate; its loss, method and evaluations are those of the reference's own check.
        reference: the headline of the reference's own report.
        effort: evaluations of J and seconds, in words.
    """
    dtype = printable(facts.dtype)
    return (
        tightness(facts),
        f"error bars: measured by running the reference in {dtype} with rounding as noise",
        "factor seen: a whole tensor that is off by a factor 1 ± this is a mismatch",
        f"reference: {reference}",
        f"loss {facts.loss:.8g}; {printable(facts.method)} method, {effort}",
        f"candidate in {dtype}, reference in float64, mode {printable(facts.mode)}, seed {facts.seed}",
    )
