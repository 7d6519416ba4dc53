"""A report as plain text of at most so many columns, laid out with rich."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Literal

from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.kept_random import kept_random
from torch_gradcheck.reporting.render.contract import Contract
from torch_gradcheck.reporting.render.outline import Entry, Outline, outline
from torch_gradcheck.reporting.render.shorten import cells_of, shortened

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH = 80
"""Columns of the text, whatever the terminal: equal facts give equal text. Smaller widths are raised to 80."""

NAME_WIDTH = 26
"""Columns that a long shape leaves to the name, where the width is too small for both."""

SHAPE_WIDTH = 10
"""Columns that the shape keeps in any case."""

COORDINATES = 3
"""Coordinates shown of a wrong parameter, the worst first."""

WRONG_REFERENCE = "── the reference, in float64 against centered differences"
CANDIDATE = "── the candidate, beside the reference"
"""Headings of both halves of a report whose reference is wrong itself."""


@kept_random()
def text(facts: Facts, width: int | None = None) -> str:
    """Returns the report in lines of at most `width` columns (`None`: 80), without colour codes or trailing spaces."""
    said, width = outline(facts), max(width or WIDTH, WIDTH)
    return "\n\n".join(section for section in _sections(said, width) if section)


def _sections(said: Outline, width: int) -> list[str]:
    return [
        rendered(_opening(said), width),
        *([] if said.reference is None else _of_reference(said.reference, said.summary, width)),
        rendered(_table(said, width), width),
        *(rendered(section, width) for section in _mistakes(said)),
        rendered(_contract(said.contract), width),
        rendered(_gaps(said), width),
        rendered(_notes(said), width),
    ]


def _of_reference(reference: Outline, summary: Sequence[str], width: int) -> list[str]:
    """Returns the report on a wrong reference, and the first lines on the candidate behind it."""
    return [WRONG_REFERENCE, *_sections(reference, width), rendered([CANDIDATE, *summary], width)]


def rendered(renderables: Iterable[RenderableType], width: int) -> str:
    """Returns the text of `renderables`, laid out by rich for a page that is neither terminal nor notebook."""
    from rich.console import Console

    page = StringIO()
    console = Console(
        file=page,
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,  # in a notebook rich would show it there and leave the page empty
        markup=False,
        emoji=False,
        highlight=False,
    )
    for renderable in renderables:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()).strip("\n")


def _opening(said: Outline) -> list[str]:
    culprit = [] if said.culprit is None else [f"culprit: {said.culprit}"]
    if said.reference is None:
        return [said.headline, *culprit, *said.summary]
    return [said.headline, f"culprit in the reference: {said.reference.culprit or 'not found'}", *culprit]


def _table(said: Outline, width: int) -> Iterator[RenderableType]:
    if not said.lines:
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    columns = _columns(said, width)
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    yield table
    yield from (fold.sentence for fold in said.folds)
    yield from (f"tied: {sentence}" for sentence in said.tied)


@dataclass(frozen=True)
class _Column:
    header: str
    cells: list[str]
    justify: Literal["left", "right"] = "left"

    @property
    def width(self) -> int:
        return max(map(cells_of, [*self.header.splitlines(), *self.cells]))

    def within(self, width: int) -> _Column:
        """Returns the same column, its cells cut to `width`."""
        return replace(self, cells=shortened(self.cells, width))


def _columns(said: Outline, width: int) -> list[_Column]:
    """Returns the columns of the table. Figures have the room they need; names and shapes share the rest."""
    lines = said.lines
    status = _Column("  status", [f"{line.mark} {line.status}" for line in lines])
    name = _Column(said.called, [line.name for line in lines])
    shape = _Column("shape", [line.shape for line in lines])
    figures = [
        _Column(column.header, [line.figures[k] for line in lines], "right" if column.is_figure else "left")
        for k, column in enumerate(said.columns)
    ]
    room = width - sum(column.width + 1 for column in (status, *figures)) - 1
    shape = shape.within(min(shape.width, max(room - min(name.width, NAME_WIDTH), SHAPE_WIDTH)))
    return [status, name.within(room - shape.width), shape, *figures]


def _mistakes(said: Outline) -> Iterator[list[RenderableType]]:
    """Yields a section for each wrong parameter."""
    for mistake in said.mistakes:
        section: list[RenderableType] = [f"✗ {mistake.name}, shape {mistake.shape}"]
        section += [_indented(sentence) for sentence in mistake.sentences]
        if mistake.entries:
            section.append(_indented(_entries(mistake.entries[:COORDINATES], said.sides)))
        if mistake.picture is not None:
            section += [_indented(line) for line in (mistake.picture.caption, *mistake.picture.lines)]
        yield section
    yield [said.more_mistakes]


def _entries(entries: Sequence[Entry], sides: tuple[str, str]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("index", overflow="fold")
    for header in (*sides, "difference", "error bar"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for entry in entries:
        table.add_row(entry.index, entry.analytic, entry.numeric, entry.difference, entry.noise, entry.remark)
    return table


def _contract(said: Contract | None) -> Iterator[RenderableType]:
    """Yields the entries that have failed in full, those that passed by name, what else there is to say."""
    if said is None:
        return
    yield said.title
    for clause in said.failed:
        yield f"✗ {clause.name}"
        yield _indented(clause.message)
    if said.passed:
        told = [(" ", f"{clause.name}: {clause.message}") for clause in said.passed if clause.message]
        yield _bullets([(" ", f"passed: {', '.join(clause.name for clause in said.passed)}"), *told])
    if said.not_applicable:
        yield _bullets([("-", f"{clause.name} (not applicable): {clause.message}") for clause in said.not_applicable])


def _gaps(said: Outline) -> Iterator[RenderableType]:
    """Yields the parameters that are not proven, with the reasons."""
    for gap in said.gaps:
        yield f"{gap.mark} {gap.status}: {gap.names}"
        yield _indented(gap.reason)
    if said.more_gaps:
        yield said.more_gaps


def _notes(said: Outline) -> Iterator[RenderableType]:
    if said.notes:
        yield "notes"
        yield _bullets([("-", note) for note in said.notes])


def _bullets(lines: Sequence[tuple[str, str]]) -> Table:
    """Returns paragraphs that hang behind their marks."""
    from rich.table import Table

    bullets = Table.grid(padding=(0, 1, 0, 0))
    for mark, words in lines:
        bullets.add_row(mark, words)
    return bullets


def _indented(renderable: RenderableType) -> RenderableType:
    from rich.padding import Padding

    return Padding(renderable, (0, 0, 0, 4))
