"""What a report says of wrong rows: those that one mistake explains together, the worst coordinates, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import Coordinate, Diagnosis, DiagnosisKind, Facts, ParameterReport, Status
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
    """Returns the wrong rows in groups that one mistake explains, the most telling kinds first.

    These say what is wrong; then come those that say where, and the unknown ones, which are one group with a culprit.
    """
    groups: dict[object, list[ParameterReport]] = {}
    for row in facts.mismatches:
        found = row.diagnosis
        single = (
            found is None
            or found.kind.is_about_places
            or (found.kind is DiagnosisKind.UNKNOWN and facts.culprit is None)
        )
        key = row.name if single or found is None else _mistake_of(found)
        groups.setdefault(key, []).append(row)
    return sorted(groups.values(), key=lambda rows: _little_told(rows[0].diagnosis))


def _mistake_of(found: Diagnosis) -> tuple[object, ...]:
    """What equal mistakes of several parameters have in common."""
    return found.kind, found.factor and figure(found.factor), found.made_in_a_call


def _little_told(found: Diagnosis | None) -> int:
    """0 where it is said what is wrong, 1 where it is said where, 2 where neither is known."""
    return 2 if found is None else 2 - found.kind.is_known - found.kind.is_told


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
