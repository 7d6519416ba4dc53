"""The figures of a table, column by column: of a check by differences, and of a candidate beside a reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import Facts, ParameterReport, Status
from torch_gradcheck.reporting.printable import printable
from torch_gradcheck.reporting.render.figures import UNMEASURED, error_bar, figure, short, word
from torch_gradcheck.reporting.words import percent, times


@dataclass(frozen=True, slots=True)
class Column:
    """One column of figures.

    Attributes:
        header: of at most two short lines.
        title: the header where there is room.
        cell: the figure of a row, given the tolerance of the check.
        is_figure: numbers stand at the right.
        kept: where there is no room for all columns, those with the smallest number go first.
    """

    header: str
    title: str
    cell: Callable[[ParameterReport, float], str]
    is_figure: bool = True
    kept: int = 0


def columns_of(facts: Facts) -> tuple[Column, ...]:
    """Returns the columns of the table: with a reference what a candidate loses beside it, else the lecture's ratio."""
    if facts.reference is None:
        return RATIO, VERDICT, LARGEST, NOISE, WRONG
    dtype = printable(facts.dtype) if "," not in facts.dtype else "its dtype"
    loses = Column(f"times\n{dtype}", f"times what {dtype} loses", _loses, kept=5)
    return RATIO, loses, LARGEST, IN_BARS, SEEN, WRONG


def _relative_error(row: ParameterReport, _: float) -> str:
    ratio = row.relative_error
    if ratio is None or (math.isnan(ratio) and row.status is Status.UNDECIDED):
        return UNMEASURED
    return figure(ratio)


def _verdict(row: ParameterReport, tolerance: float) -> str:
    """The lecture's word; none of an undecided row, where it would accuse what noise explains."""
    if row.status is Status.UNDECIDED:
        return UNMEASURED
    return word(row.relative_error, row.verdict, tolerance).removeprefix("right ")  # the column is narrow


def _max_abs_error(row: ParameterReport, _: float) -> str:
    return figure(row.max_abs_error) if row.checked else UNMEASURED


def _noise(row: ParameterReport, _: float) -> str:
    return error_bar(row.noise)


def _loses(row: ParameterReport, _: float) -> str:
    return times(row.rounding_ratio) if row.status.is_decided else UNMEASURED


def _in_bars(row: ParameterReport, _: float) -> str:
    return times(row.worst[0].in_bars) if row.worst and row.status.is_decided else UNMEASURED


def _seen(row: ParameterReport, _: float) -> str:
    return percent(row.detectable)


def _wrong(row: ParameterReport, _: float) -> str:
    return f"{short(row.mismatched)}/{short(row.checked)}" if row.checked else UNMEASURED


RATIO = Column("rel.\nerror", "relative error", _relative_error, kept=5)
VERDICT = Column("verdict", "verdict", _verdict, is_figure=False, kept=3)
LARGEST = Column("max abs\nerror", "max abs error", _max_abs_error, kept=2)
NOISE = Column("noise", "noise", _noise, kept=1)
IN_BARS = Column("worst/\nbar", "worst entry / its error bar", _in_bars, kept=3)
SEEN = Column("factor\nseen", "smallest factor seen: 1 ±", _seen, kept=1)
WRONG = Column("wrong/\nchecked", "wrong/checked", _wrong, kept=4)
