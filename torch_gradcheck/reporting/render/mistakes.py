"""What a report says of wrong rows: those that one mistake explains together, the worst coordinates, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import Coordinate, DiagnosisKind, Facts, ParameterReport, Status
from torch_gradcheck.reporting.facts.one_line import shape_of
from torch_gradcheck.reporting.printable import printable, prose
from torch_gradcheck.reporting.render.figures import error_bar, figure
from torch_gradcheck.reporting.render.limits import Limits
from torch_gradcheck.reporting.render.picture import Picture, picture_of

VARIOUS = "various"
"""The shape of several parameters that have not the same."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One coordinate of a wrong parameter; `remark` is its status, unless `mismatch`, and its one-sided slopes."""

    index: str
    analytic: str
    numeric: str
    difference: str
    noise: str
    remark: str


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong parameter: sentences on the mistake, the worst coordinates, and a picture where they make a pattern."""

    name: str
    shape: str
    sentences: tuple[str, ...]
    entries: tuple[Entry, ...]
    picture: Picture | None


def alike(facts: Facts) -> list[list[ParameterReport]]:
    """Returns the wrong rows in groups that one mistake explains, those of a known kind first.

    With a culprit, all unknown rows are one group.
    """
    groups: dict[object, list[ParameterReport]] = {}
    for row in facts.mismatches:
        found = row.diagnosis
        single = (
            found is None
            or found.kind.is_about_places
            or (found.kind is DiagnosisKind.UNKNOWN and facts.culprit is None)
        )
        key = row.name if single or found is None else (found.kind, found.factor and figure(found.factor))
        groups.setdefault(key, []).append(row)
    return sorted(groups.values(), key=lambda rows: rows[0].diagnosis is None or not rows[0].diagnosis.kind.is_known)


def mistakes_of(rows: Sequence[ParameterReport], limits: Limits) -> list[Mistake]:
    """Returns the first row of a group in full, and one line for all others."""
    first, *others = rows
    if not others or first.diagnosis is None:
        return [_mistake(first)]
    names = limits.names([row.name for row in others])
    sentence = f"{first.diagnosis.kind}, as {printable(first.name)}"
    shapes = {shape_of(row.shape) for row in others}
    return [_mistake(first), Mistake(names, shapes.pop() if len(shapes) == 1 else VARIOUS, (sentence,), (), None)]


def _mistake(row: ParameterReport) -> Mistake:
    diagnosis = f"{row.diagnosis.kind}: {row.diagnosis.message}" if row.diagnosis else ""
    return Mistake(
        name=printable(row.name),
        shape=shape_of(row.shape),
        sentences=tuple(prose(said) for said in (diagnosis, row.reason) if said),
        entries=tuple(map(_entry, row.worst)),
        picture=None if row.map is None else picture_of(row.map),
    )


def _entry(coordinate: Coordinate) -> Entry:
    index = str(list(coordinate.index)) if coordinate.index else "()"
    return Entry(
        index=f"{index} {printable(coordinate.part)}" if coordinate.part else index,
        analytic=f"{coordinate.analytic:.6e}",
        numeric=f"{coordinate.numeric:.6e}",
        difference=figure(coordinate.analytic - coordinate.numeric),
        noise=error_bar(coordinate.noise),
        remark=_remark(coordinate),
    )


def _remark(coordinate: Coordinate) -> str:
    words = [] if coordinate.status is Status.MISMATCH else [coordinate.status.value]
    if coordinate.slopes:
        words.append("slopes {:.2e} | {:.2e}".format(*coordinate.slopes))
    return ", ".join(words)
