"""Figures of a report in few characters, and the lecture's word for a ratio."""

from __future__ import annotations

import math

from torch_gradcheck.reporting.facts import Verdict
from torch_gradcheck.reporting.words import tolerance_in_words

UNMEASURED = "–"
"""Stands for a figure that was not measured."""

LECTURE_GOOD = 1e-5
"""Ratios up to this one are `good`, as the lecture has it. A report at a larger tolerance says which it is."""


def figure(value: float) -> str:
    """Returns a measured figure to two digits: `3.3e-01`, `0`, `nan`, `inf`."""
    return f"{value:.1e}" if value else "0"


def error_bar(value: float) -> str:
    """Returns an error bar to one digit, as in `3e-11`; `UNMEASURED` for NaN."""
    return UNMEASURED if math.isnan(value) else f"{value:.0e}" if value else "0"


def short(count: int) -> str:
    """Returns a count in at most five characters: `61706`, `235k`, `11.2M`."""
    if count < 100_000:
        return str(count)
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if count < 999.5 * size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0e}"


def word(ratio: float | None, verdict: Verdict | None, tolerance: float) -> str:
    """Returns the lecture's word; "right to 1e-3" where a raised tolerance lets pass what the lecture doubts."""
    if verdict is None or ratio is None:
        return UNMEASURED
    passes_only_so = ratio <= tolerance and verdict not in (Verdict.GREAT, Verdict.GOOD)
    return f"right{raised(tolerance)}" if passes_only_so else verdict.value


def raised(tolerance: float) -> str:
    """Returns " to 1e-3" for a tolerance above that of a check in float64, else ""."""
    return f" to {tolerance_in_words(tolerance)}" if tolerance > LECTURE_GOOD else ""
