"""The rows of two reports in pairs, and what became of each from the old report to the new one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from torch_gradcheck.reporting.facts import Facts, ParameterReport, Role, Status, badness
from torch_gradcheck.reporting.facts.content import Record
from torch_gradcheck.reporting.printable import printable

BEYOND_NOISE = 2.0
"""The factor by which a relative error must have grown or shrunk to be worse or better."""


class Change(StrEnum):
    """What became of a row from the old report to the new one, the worst first."""

    BECAME_WRONG = "became wrong"
    """A mismatch, and was none: of a row that only the new report has as well."""
    GONE = "gone"
    """Only the old report has the row."""
    WORSE = "worse"
    """Was proven and is not, nor is it wrong; or its error has grown beyond `BEYOND_NOISE` and both error bars."""
    CHANGED = "changed"
    """Another status that is neither better nor worse: wrong then and not told now, from match to kink."""
    NEW = "new"
    """Only the new report has the row, and it is not wrong."""
    BETTER = "better"
    """Is proven and was neither that nor wrong; or its error has shrunk beyond `BEYOND_NOISE` and both error bars."""
    BECAME_RIGHT = "became right"
    """Was a mismatch, and is a match or a kink."""
    SAME = "as before"

    @property
    def is_regression(self) -> bool:
        """Whether nobody should overlook it."""
        return self in (Change.BECAME_WRONG, Change.GONE)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ComparedRow(Record):
    """One row of either report or of both.

    Attributes:
        change: what became of it.
        old, new: the row in each report; None where it has none. A row that has another name is the same row where the
            one name is an alias of the other.
    """

    change: Change
    old: ParameterReport | None
    new: ParameterReport | None

    @property
    def row(self) -> ParameterReport:
        """The new row, or the old one where there is no new one."""
        row = self.new or self.old
        assert row is not None
        return row

    @property
    def name(self) -> str:
        """The row's name, the new one where it was renamed."""
        return self.row.name

    def __repr__(self) -> str:
        return f"<ComparedRow {printable(self.name)}: {self.change}>"


def rows_compared(new: Facts, old: Facts) -> tuple[ComparedRow, ...]:
    """All rows of both reports: in the order of the new one, then those that are gone."""
    pairs = _pairs(new, old)
    matched = {id(before) for _, before in pairs if before is not None}
    gone = [ComparedRow(Change.GONE, row, None) for row in old if id(row) not in matched]
    return (*[ComparedRow(_change(before, after), before, after) for after, before in pairs], *gone)


def _pairs(new: Facts, old: Facts) -> list[tuple[ParameterReport, ParameterReport | None]]:
    """Each new row with the old one: of the same name, else one that shares a name with it."""
    names, all_names = _Named(old, _own_name), _Named(old, _all_names)
    by_name = [names.taken_for(row) for row in new]
    all_names.leave_out(by_name)
    return [(row, same or all_names.taken_for(row)) for row, same in zip(new, by_name, strict=True)]


def _own_name(row: ParameterReport) -> tuple[str, ...]:
    return (row.name,)


def _all_names(row: ParameterReport) -> tuple[str, ...]:
    return (row.name, *row.aliases)


class _Named:
    """Rows found by their names, each for one other row; an output is never the row of a gradient."""

    def __init__(self, rows: Iterable[ParameterReport], names_of: Callable[[ParameterReport], tuple[str, ...]]) -> None:
        self._names_of = names_of
        self._rows: dict[tuple[str, bool], list[ParameterReport]] = {}
        self._taken: set[int] = set()
        for row in rows:
            for key in self._keys(row):
                self._rows.setdefault(key, []).append(row)

    def _keys(self, row: ParameterReport) -> list[tuple[str, bool]]:
        return [(name, row.role is Role.OUTPUT) for name in self._names_of(row)]

    def leave_out(self, rows: Iterable[ParameterReport | None]) -> None:
        """Rows that are taken already."""
        self._taken |= {id(row) for row in rows if row is not None}

    def taken_for(self, row: ParameterReport) -> ParameterReport | None:
        """Takes the first row that has one of its names; None where there is none left."""
        for key in self._keys(row):
            for other in self._rows.get(key, ()):
                if id(other) not in self._taken:
                    self._taken.add(id(other))
                    return other
        return None


def _change(old: ParameterReport | None, new: ParameterReport) -> Change:
    if old is None:
        return Change.BECAME_WRONG if new.status is Status.MISMATCH else Change.NEW
    was, is_now = old.status, new.status
    if was is is_now:
        return _change_of_size(old, new)
    if is_now is Status.MISMATCH:
        return Change.BECAME_WRONG
    if was is Status.MISMATCH:
        return Change.BECAME_RIGHT if is_now.is_proven else Change.CHANGED
    if was.is_proven is is_now.is_proven:
        return Change.CHANGED
    return Change.BETTER if is_now.is_proven else Change.WORSE


def _change_of_size(old: ParameterReport, new: ParameterReport) -> Change:
    if new.status not in (Status.MATCH, Status.MISMATCH) or old.shape != new.shape:
        return Change.SAME if old.shape == new.shape else Change.CHANGED
    if _is_larger(new, old):
        return Change.WORSE
    return Change.BETTER if _is_larger(old, new) else Change.SAME


def _is_larger(row: ParameterReport, other: ParameterReport) -> bool:
    """Whether the error of `row` is the larger one by more than noise explains; False where an error bar is unknown."""
    if row.relative_error is None or other.relative_error is None:
        return False
    sizes = badness(row), badness(other)
    if math.inf in sizes:
        return sizes[1] < sizes[0]
    return sizes[0] > BEYOND_NOISE * sizes[1] and _is_beyond_bars(row, other)


def _is_beyond_bars(row: ParameterReport, other: ParameterReport) -> bool:
    """Whether the error of `row` is larger by more than both error bars: of the ratio, else of the largest error."""
    bars = row.relative_noise + other.relative_noise
    if math.isfinite(bars):
        return badness(row) - badness(other) > bars
    return row.max_abs_error - other.max_abs_error > row.noise + other.noise
