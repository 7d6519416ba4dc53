"""The content of a comparison in words and figures; text and HTML only lay it out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch_gradcheck.reporting.comparison.difference import Difference
from torch_gradcheck.reporting.comparison.rows import Change, ComparedRow
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.facts.one_line import shape_of
from torch_gradcheck.reporting.printable import printable, prose
from torch_gradcheck.reporting.render.figures import UNMEASURED, figure
from torch_gradcheck.reporting.render.outline import one_line, one_line_with_place
from torch_gradcheck.reporting.words import listed

EXPLAINED = 8
"""Mistakes that are said of rows that became wrong."""

STYLES = {
    Change.BECAME_WRONG: "red",
    Change.GONE: "red",
    Change.WORSE: "yellow",
    Change.BETTER: "green",
    Change.BECAME_RIGHT: "green",
}
"""The colours of what became of a row, as rich calls them."""

HEADERS = ("change", "name", "shape", "old", "rel. error", "new", "rel. error")
"""Of the table: each report has the row's status and its relative error."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table, and what became of it."""

    change: Change
    cells: tuple[str, ...]


def headline_of(found: Difference) -> str:
    """Returns how many rows changed in which way, the worst first."""
    counts = Counter(row.change for row in found.rows)
    if found.is_unchanged:
        return f"nothing changed: {len(found.rows):,} of {len(found.rows):,} rows are as before"
    counted = [
        f"{counts[change]:,} {change.upper() if change.is_regression else change}"
        for change in Change
        if counts[change]
    ]
    said = ", ".join([*counted, *_of_the_whole(found)])
    return said if found.regressed else f"nothing became wrong: {said}"


def _of_the_whole(found: Difference) -> list[str]:
    """What changed that is no row: entries of the contract, and the reference."""
    broken, kept = (", ".join(map(printable, names)) for names in (found.became_broken, found.became_kept))
    return [
        *([f"contract BROKEN now in {broken}"] if broken else []),
        *([f"contract kept now in {kept}"] if kept else []),
        *(["the reference is WRONG now"] if found.reference_became_wrong else []),
    ]


def unlike(found: Difference) -> list[str]:
    """What the reader must know before the rows are compared: other options, another J."""
    options = [f"{name} {printable(str(old))} → {printable(str(new))}" for name, (old, new) in found.conditions.items()]
    asked = [f"not checked alike: {', '.join(options)}"] if options else []
    return [*asked, *_another_loss(found)]


def _another_loss(found: Difference) -> list[str]:
    old, new = found.old, found.new
    noise = [each for each in (old.noise, new.noise) if math.isfinite(each)]
    if old.loss == new.loss or abs(old.loss - new.loss) <= 4 * max(noise, default=0.0):
        return []
    if math.isnan(old.loss) and math.isnan(new.loss):
        return []
    return [f"the loss was {old.loss:.8g} and is {new.loss:.8g}: other parameters, another batch or other code"]


def lines_of(found: Difference) -> list[Line]:
    """The rows that are not as before, the worst first."""
    order = list(Change)
    changed = [row for row in _worst_first(found) if row.change is not Change.SAME]
    return [Line(row.change, _cells(row)) for row in sorted(changed, key=lambda row: order.index(row.change))]


def told(found: Difference) -> list[str]:
    """What each report says in a line, and where in the code the new one's mistake is."""
    return [f"old: {one_line(found.old)}", f"new: {one_line_with_place(found.new)}"]


def _worst_first(found: Difference) -> list[ComparedRow]:
    """The rows with those that are wrong now in the order of the new report's `mismatches`, then the others."""
    place = {id(row): k for k, row in enumerate(found.new.mismatches)}
    return sorted(found.rows, key=lambda row: place.get(id(row.new), len(place)))


def _cells(row: ComparedRow) -> tuple[str, ...]:
    old, new = row.old, row.new
    name, shape = printable(row.name), shape_of(row.row.shape)
    if old is not None and new is not None:
        name += f" (was {printable(old.name)})" if old.name != new.name else ""
        shape = f"{shape_of(old.shape)} → {shape}" if old.shape != new.shape else shape
    return (row.change.value, name, shape, *_figures(old), *_figures(new))


def _figures(row: ParameterReport | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    return row.status.value, UNMEASURED if row.relative_error is None else figure(row.relative_error)


def explanations(found: Difference) -> Iterator[tuple[str, str]]:
    """What became wrong, and the evidence: of rows the mistake, of entries of the contract the message."""
    rows: dict[str, list[str]] = {}
    for each in _worst_first(found):
        if each.change is Change.BECAME_WRONG:
            rows.setdefault(_evidence(each.row), []).append(printable(each.name))
    rows.pop("", None)
    yield from [(f"✗ {listed(names)}", prose(evidence)) for evidence, names in list(rows.items())[:EXPLAINED]]
    for entry in found.entries:
        if entry.is_broken and entry.new is not None:
            yield f"✗ {printable(entry.name)}", prose(entry.new.message)


def _evidence(row: ParameterReport) -> str:
    return row.reason if row.diagnosis is None else f"{row.diagnosis.kind}: {row.diagnosis.message}"
