"""The faults that a check would not find as plain text, those of one module and one reason on one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch_gradcheck.reporting.kept_random import kept_random
from torch_gradcheck.reporting.render.layout import rendered, styled
from torch_gradcheck.reporting.render.terminal import Page

if TYPE_CHECKING:
    from rich.console import RenderableType

MANY = 40
"""Lines of the table; further ones are counted."""

OWN = "gradient of "

OF_A_GRADIENT = re.compile(rf"(output gradient|{OWN}[^\s,]+),? (.+)")
"""What is said of a fault: the gradient that is wrong, and what is wrong with it."""

Hidden = tuple[str, str, str]
"""Module, fault and reason."""


@kept_random()
def table(hidden: Sequence[Hidden], planted: int, where: str, notes: Sequence[str], page: Page) -> str:
    """The text, in lines that fit the page.

    Args:
        hidden: the faults that would not be found.
        planted: how many there are in all.
        where: the circumstances, on one line.
        notes: one sentence each.
        page: that it is laid out for.
    """
    headline = styled(outcome(planted - len(hidden), planted), "yellow" if hidden else "green")
    sections = [rendered([headline, styled(where, "dim")], page)]
    sections.append(rendered(_lines(hidden), page, is_table=True))
    sections.append(rendered(_notes(notes), page))
    return "\n\n".join(section for section in sections if section)


def outcome(found: int, planted: int) -> str:
    """The first line: how many of the faults would be found."""
    return f"{found:,} of {planted:,} faults would be found"


def _lines(hidden: Sequence[Hidden]) -> Iterator[RenderableType]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    if not hidden:
        return
    lines = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    for header, ratio in (("module", 3), ("would not be found", 5), ("because", 5)):
        lines.add_column(header, overflow="fold", ratio=ratio)
    joined = together(hidden)
    for module, faults, reason in joined[:MANY]:
        lines.add_row(module or "the model", faults, reason)
    yield lines
    if len(joined) > MANY:
        yield f"and {len(joined) - MANY} more lines; to_dict() has them all"


def together(hidden: Sequence[Hidden]) -> list[Hidden]:
    """The rows, those of one module for one reason joined to one."""
    faults: dict[tuple[str, str], list[str]] = {}
    for module, fault, reason in hidden:
        faults.setdefault((module, reason), []).append(fault)
    return [(module, _in_short(those), reason) for (module, reason), those in faults.items()]


def _in_short(faults: Sequence[str]) -> str:
    """The faults with what they have in common said once: "gradient of weight, bias scaled by 1.01, zeroed"."""
    by_gradient: dict[str, list[str]] = {}
    for fault in faults:
        parts = OF_A_GRADIENT.fullmatch(fault)
        gradient, how = (parts[1], parts[2]) if parts else (fault, "")
        by_gradient.setdefault(gradient, []).append(how)
    by_faults: dict[str, list[str]] = {}
    for gradient, hows in by_gradient.items():
        by_faults.setdefault(", ".join(hows), []).append(gradient)
    groups = (
        (", ".join([those[0], *(each.removeprefix(OWN) for each in those[1:])]), how)
        for how, those in by_faults.items()
    )
    return "; ".join(f"{gradients} {how}".strip() for gradients, how in groups)


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield "notes"
        yield from (f"- {note}" for note in notes)
