"""A comparison of two reports as text for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch_gradcheck.reporting.comparison.difference import Difference
from torch_gradcheck.reporting.kept_random import kept_random
from torch_gradcheck.reporting.render.comparison.outline import (
    HEADERS,
    STYLES,
    Line,
    explanations,
    headline_of,
    lines_of,
    told,
    unlike,
)
from torch_gradcheck.reporting.render.layout import indented, rendered, styled
from torch_gradcheck.reporting.render.shorten import cells_of, shortened
from torch_gradcheck.reporting.render.terminal import Page

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


MANY = 20
"""Rows of the table; further ones are counted."""


SHORTEST = 12
"""Columns that a name has on the narrowest page."""


@kept_random()
def text_of(found: Difference, page: Page) -> str:
    """Returns the comparison in lines that fit the page: the outcome, what was not alike, and the rows that differ."""
    lines = lines_of(found)
    sections = [
        rendered(_opening(found), page),
        rendered([_table(lines[:MANY], page)], page, is_table=True) if lines else "",
        rendered(_left_out(len(lines) - MANY), page),
        rendered(_below(found), page),
    ]
    return "\n\n".join(section for section in sections if section)


def _opening(found: Difference) -> Iterator[RenderableType]:
    yield styled(headline_of(found), "bold red" if found.regressed else "bold")
    yield from map(styled, told(found))
    yield from [styled(sentence, "yellow") for sentence in unlike(found)]


def _table(lines: Sequence[Line], page: Page) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, header_style="", border_style="dim")
    for header in HEADERS:
        table.add_column(header, justify="right" if header == "rel. error" else "left", no_wrap=True)
    for line, name in zip(lines, _names(lines, page), strict=True):
        style = STYLES.get(line.change, "")
        table.add_row(*[styled(cell, style) for cell in (line.cells[0], name, *line.cells[2:])])
    return table


def _names(lines: Sequence[Line], page: Page) -> list[str]:
    """The names of the rows, cut to what the other columns leave of the page."""
    columns = zip(HEADERS, zip(*(line.cells for line in lines), strict=True), strict=True)
    widths = [max(map(cells_of, [header, *cells])) for header, cells in columns]
    room = page.columns - sum(width + 1 for width in widths) + widths[1] + 1
    return shortened([line.cells[1] for line in lines], max(room, SHORTEST), "…" if page.can_show("…") else "...")


def _left_out(number: int) -> list[RenderableType]:
    more = f"… and {number:,} more rows that changed; the lists of the comparison name them all"
    return [styled(more, "dim")] if number > 0 else []


def _below(found: Difference) -> Iterator[RenderableType]:
    for line, message in explanations(found):
        yield styled(line, "red")
        yield indented(styled(message))
