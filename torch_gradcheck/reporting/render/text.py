"""A report as text for a page: what stands on it, from the outcome down to the notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.kept_random import kept_random
from torch_gradcheck.reporting.render.contract import Contract
from torch_gradcheck.reporting.render.encodable import all_encodable
from torch_gradcheck.reporting.render.layout import INDENT, bullets, indented, rendered, styled
from torch_gradcheck.reporting.render.mistakes import VARIOUS, Entry, Mistake
from torch_gradcheck.reporting.render.outline import MAX_ROWS, Outline, outline
from torch_gradcheck.reporting.render.picture import Picture
from torch_gradcheck.reporting.render.shorten import cells_of
from torch_gradcheck.reporting.render.table import table_of
from torch_gradcheck.reporting.render.terminal import Page
from torch_gradcheck.reporting.words import STATUS_WORDS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

COORDINATES = 3
"""Coordinates shown of a wrong parameter, the worst first."""

ROOM_FOR_DIFFERENCES = 72
"""Columns from which on the difference and the error bar stand beside both numbers of a coordinate."""

SYMBOLS = "(dθ is the gradient on trial, J the loss as a function of θ)"
"""Stands below the mistakes where one of them is told with these symbols."""

WRONG_REFERENCE = "── the reference, in float64 against centered differences"
CANDIDATE = "── the candidate, beside the reference"
"""Headings of both halves of a report whose reference is wrong itself."""

PLAIN = Page()


@kept_random()
def text(facts: Facts, page: Page = PLAIN, max_rows: int | None = MAX_ROWS, only_wrong: bool = False) -> str:
    """Returns the report in lines that fit the page, without spaces at their end.

    Args:
        facts: what was found.
        page: its width, colours and characters; 80 columns of plain text by default.
        max_rows: the wrong rows that are shown, and as many others; further ones are counted. None shows all.
        only_wrong: count the rows that are not wrong.
    """
    said = all_encodable(outline(facts, max_rows, only_wrong), page.encoding)
    return "\n\n".join(section for section in _sections(said, page) if section)


def _sections(said: Outline, page: Page) -> list[str]:
    return [
        rendered(_opening(said), page),
        *([] if said.reference is None else _of_reference(said.reference, said.summary, page)),
        _table(said, page),
        *(rendered(section, page) for section in _mistakes(said, page)),
        rendered(_contract(said.contract), page),
        rendered(_gaps(said), page),
        rendered(_notes(said), page),
    ]


def _of_reference(reference: Outline, summary: Sequence[str], page: Page) -> list[str]:
    """Returns the report on a wrong reference, and the first lines on the candidate behind it."""
    candidate = rendered([styled(CANDIDATE, "bold"), *_dim(summary)], page)
    return [rendered([styled(WRONG_REFERENCE, "bold")], page), *_sections(reference, page), candidate]


def _dim(sentences: Sequence[str]) -> Iterator[RenderableType]:
    yield from [styled(sentence, "dim") for sentence in sentences if sentence]


def _opening(said: Outline) -> Iterator[RenderableType]:
    yield styled(said.headline, f"bold {said.style}")
    if said.reference is not None:
        yield styled(f"culprit in the reference: {_placed(said.reference) or 'not found'}", "bold")
    if said.culprit is not None:
        yield styled(f"culprit: {_placed(said)}", "bold")
    if said.reference is None:
        yield from _dim(said.summary)


def _placed(said: Outline) -> str:
    """Returns the culprit and its place in the code; "" without one."""
    return ", ".join(part for part in (said.culprit, said.place) if part)


def _table(said: Outline, page: Page) -> str:
    below = rendered(_dim([*(fold.sentence for fold in said.folds), *(f"tied: {names}" for names in said.tied)]), page)
    rows = rendered([table_of(said, page)], page, is_table=True) if said.lines else ""
    return "\n".join(part for part in (rows, below) if part)


def _mistakes(said: Outline, page: Page) -> Iterator[list[RenderableType]]:
    """Yields a section for each wrong parameter."""
    for mistake in said.mistakes:
        shape = "of various shapes" if mistake.shape == VARIOUS else f"shape {mistake.shape}"
        yield [styled(f"✗ {mistake.name}, {shape}", "red"), *_evidence(mistake, said.sides, page)]
    yield list(_dim([said.more_mistakes, _symbols(said)]))


def _symbols(said: Outline) -> str:
    """Returns what dθ and J stand for, if a mistake is told with dθ; "" otherwise."""
    sentences = [sentence for mistake in said.mistakes for sentence in mistake.sentences]
    return SYMBOLS if any("dθ" in sentence or "dtheta" in sentence for sentence in sentences) else ""


def _evidence(mistake: Mistake, sides: tuple[str, str], page: Page) -> Iterator[RenderableType]:
    yield from [indented(styled(sentence)) for sentence in mistake.sentences]
    if mistake.entries:
        yield indented(_entries(mistake.entries[:COORDINATES], sides, page))
    if mistake.picture is not None and _has_room(mistake.picture, page):
        yield from [indented(styled(line)) for line in (mistake.picture.caption, *mistake.picture.lines)]


def _has_room(picture: Picture, page: Page) -> bool:
    return all(cells_of(line) <= page.columns - INDENT for line in picture.lines)


def _entries(entries: Sequence[Entry], sides: tuple[str, str], page: Page) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    has_room, has_remarks = page.columns >= ROOM_FOR_DIFFERENCES, any(entry.remark for entry in entries)
    table.add_column("index", overflow="fold")
    for header in (*sides, *(("difference", "error bar") if has_room else ())):
        table.add_column(header, justify="right", no_wrap=True)
    if has_remarks:
        table.add_column("", overflow="fold")
    for entry in entries:
        figures = (entry.analytic, entry.numeric, *((entry.difference, entry.noise) if has_room else ()))
        remark = (entry.remark,) if has_remarks else ()
        table.add_row(*map(styled, (entry.index, *figures, *remark)))
    return table


def _contract(said: Contract | None) -> Iterator[RenderableType]:
    """Yields the entries that have failed in full, those that passed by name, what else there is to say."""
    if said is None:
        return
    yield styled(said.title, "red" if said.failed else "")
    for clause in said.failed:
        yield styled(f"✗ {clause.name}", "red")
        yield indented(styled(clause.message))
    if said.passed:
        told = [(" ", f"{clause.name}: {clause.message}") for clause in said.passed if clause.message]
        yield bullets([(" ", f"passed: {', '.join(clause.name for clause in said.passed)}"), *told])
    if said.not_applicable:
        clauses = [("-", f"{clause.name} (not applicable): {clause.message}") for clause in said.not_applicable]
        yield bullets(clauses, "dim")


def _gaps(said: Outline) -> Iterator[RenderableType]:
    """Yields the parameters that are not proven, with the reasons."""
    for gap in said.gaps:
        yield styled(f"{gap.mark} {gap.status}: {gap.names}", STATUS_WORDS[gap.status].style)
        yield indented(styled(gap.reason))
    if said.more_gaps:
        yield styled(said.more_gaps, "dim")


def _notes(said: Outline) -> Iterator[RenderableType]:
    if said.notes:
        yield styled("notes", "dim")
        yield bullets([("-", note) for note in said.notes], "dim")
