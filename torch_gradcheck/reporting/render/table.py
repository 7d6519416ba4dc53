"""The table of rows, as wide as it needs to be: names have what figures leave; a narrow page has fewer figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torch_gradcheck.reporting.render.outline import Line, Outline
from torch_gradcheck.reporting.render.shorten import cells_of, shortened
from torch_gradcheck.reporting.render.terminal import Page
from torch_gradcheck.reporting.words import STATUS_WORDS

if TYPE_CHECKING:
    from rich.table import Table

NAME_WIDTH = 26
"""Columns that a long shape leaves to the name, where the width is too small for both."""

SHAPE_WIDTH = 10
"""Columns that the shape keeps in any case."""

SHORTEST = 12
"""Columns of a name below which figures give way to it."""


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    cells: list[str]
    justify: Literal["left", "right"] = "left"
    kept: int = 0

    @property
    def width(self) -> int:
        return max(map(cells_of, [*self.header.splitlines(), *self.cells]))

    def within(self, width: int, ellipsis: str) -> _Column:
        """Returns the same column, its cells cut to `width`."""
        return replace(self, cells=shortened(self.cells, width, ellipsis))


def table_of(said: Outline, page: Page) -> Table:
    """Returns the table, which is no wider than the page; the status of a row is in its colour."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, header_style="")
    columns = _columns(said, page)
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=True)
    for line, cells in zip(said.lines, zip(*(column.cells for column in columns), strict=True), strict=True):
        style = STATUS_WORDS[line.status].style
        status, name, *figures = cells
        table.add_row(Text(status, style), Text(name, style if line.is_wrong else ""), *map(Text, figures))
    return table


def _columns(said: Outline, page: Page) -> list[_Column]:
    """Returns the columns of the table. Figures have the room they need; names and shapes share the rest."""
    lines, ellipsis = said.lines, "…" if page.can_show("…") else "..."
    status = _Column("  status", [f"{line.mark} {line.status}" for line in lines])
    name = _Column(said.called, [line.name for line in lines])
    shape = _Column("shape", [line.shape for line in lines])
    figures = _that_fit(_figures(said, lines), page.columns - status.width - min(name.width, SHORTEST) - 2)
    room = page.columns - sum(column.width + 1 for column in (status, *figures)) - 1
    if room - min(shape.width, SHAPE_WIDTH) < min(name.width, SHORTEST):
        return [status, name.within(room + 1, ellipsis), *figures]
    shape = shape.within(min(shape.width, max(room - min(name.width, NAME_WIDTH), SHAPE_WIDTH)), ellipsis)
    return [status, name.within(room - shape.width, ellipsis), shape, *figures]


def _figures(said: Outline, lines: Sequence[Line]) -> list[_Column]:
    return [
        _Column(
            column.header, [line.figures[k] for line in lines], "right" if column.is_figure else "left", column.kept
        )
        for k, column in enumerate(said.columns)
    ]


def _that_fit(figures: Sequence[_Column], room: int) -> list[_Column]:
    """Returns the columns that have room, those first that a report keeps longest."""
    fit = list(figures)
    while fit and sum(column.width + 1 for column in fit) > room:
        fit.remove(min(fit, key=lambda column: column.kept))
    return fit
