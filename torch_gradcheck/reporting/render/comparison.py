"""A comparison of two reports as text for a page, and as a fragment of HTML."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from torch_gradcheck.reporting.comparison.difference import Difference
from torch_gradcheck.reporting.comparison.rows import Change, ComparedRow
from torch_gradcheck.reporting.facts import Facts, ParameterReport
from torch_gradcheck.reporting.facts.one_line import in_one_line, shape_of
from torch_gradcheck.reporting.kept_random import kept_random
from torch_gradcheck.reporting.render.figures import UNMEASURED, figure
from torch_gradcheck.reporting.render.layout import indented, rendered, styled
from torch_gradcheck.reporting.render.outline import culprit_in_words, headline
from torch_gradcheck.reporting.render.printable import printable, prose
from torch_gradcheck.reporting.render.shorten import cells_of, shortened
from torch_gradcheck.reporting.render.terminal import Page
from torch_gradcheck.reporting.words import listed

if TYPE_CHECKING:
    from jinja2 import Template
    from rich.console import RenderableType
    from rich.table import Table

MANY = 30
"""Rows of the table; further ones are counted."""

EXPLAINED = 8
"""Mistakes that are said of rows that became wrong."""

SHORTEST = 12
"""Columns that a name has on the narrowest page."""

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
class _Line:
    """A row of the table, and what became of it."""

    change: Change
    cells: tuple[str, ...]


@kept_random()
def text_of(found: Difference, page: Page) -> str:
    """Returns the comparison in lines that fit the page: the outcome, what was not alike, and the rows that differ."""
    lines = _lines(found)
    sections = [
        rendered(_opening(found), page),
        rendered([_table(lines[:MANY], page)], page, is_table=True) if lines else "",
        rendered(_below(found, len(lines)), page),
    ]
    return "\n\n".join(section for section in sections if section)


def headline_of(found: Difference) -> str:
    """Returns how many rows changed in which way, the worst first."""
    counts = Counter(row.change for row in found.rows)
    if found.is_unchanged:
        return f"nothing changed: {len(found.rows):,} of {len(found.rows):,} rows are as before"
    counted = [
        f"{counts[change]:,} {change.upper() if STYLES.get(change) == 'red' else change}"
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


def _opening(found: Difference) -> Iterator[RenderableType]:
    yield styled(headline_of(found), "bold red" if found.regressed else "bold")
    for called, facts in (("old", found.old), ("new", found.new)):
        yield styled(f"{called}: {_outcome(facts)}")
    yield from [styled(sentence, "yellow") for sentence in _unlike(found)]


def _outcome(facts: Facts) -> str:
    culprit = culprit_in_words(facts)
    return headline(facts) if culprit is None else f"{headline(facts)}; culprit: {culprit}"


def _unlike(found: Difference) -> list[str]:
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


def _lines(found: Difference) -> list[_Line]:
    """The rows that are not as before, the worst first."""
    order = list(Change)
    changed = [row for row in found.rows if row.change is not Change.SAME]
    return [_Line(row.change, _cells(row)) for row in sorted(changed, key=lambda row: order.index(row.change))]


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


def _table(lines: Sequence[_Line], page: Page) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, header_style="", border_style="dim")
    for header in HEADERS:
        table.add_column(header, justify="right" if header == "rel. error" else "left", no_wrap=True)
    for line, name in zip(lines, _names(lines, page), strict=True):
        style = STYLES.get(line.change, "")
        table.add_row(*[styled(cell, style) for cell in (line.cells[0], name, *line.cells[2:])])
    return table


def _names(lines: Sequence[_Line], page: Page) -> list[str]:
    """The names of the rows, cut to what the other columns leave of the page."""
    columns = zip(HEADERS, zip(*(line.cells for line in lines), strict=True), strict=True)
    widths = [max(map(cells_of, [header, *cells])) for header, cells in columns]
    room = page.columns - sum(width + 1 for width in widths) + widths[1] + 1
    return shortened([line.cells[1] for line in lines], max(room, SHORTEST), "…" if page.can_show("…") else "...")


def _below(found: Difference, number: int) -> Iterator[RenderableType]:
    if number > MANY:
        yield styled(
            f"… and {number - MANY:,} more rows that changed; the lists of the comparison name them all", "dim"
        )
    for line, message in _explanations(found):
        yield styled(line, "red")
        yield indented(styled(message))


def _explanations(found: Difference) -> Iterator[tuple[str, str]]:
    """What became wrong, and the evidence: of rows the mistake, of entries of the contract the message."""
    rows: dict[str, list[str]] = {}
    for each in found.rows:
        if each.change is Change.BECAME_WRONG:
            rows.setdefault(_evidence(each.row), []).append(printable(each.name))
    rows.pop("", None)
    yield from [(f"✗ {listed(names)}", prose(evidence)) for evidence, names in list(rows.items())[:EXPLAINED]]
    for entry in found.entries:
        if entry.is_broken and entry.new is not None:
            yield f"✗ {printable(entry.name)}", prose(entry.new.message)


def _evidence(row: ParameterReport) -> str:
    return row.reason if row.diagnosis is None else f"{row.diagnosis.kind}: {row.diagnosis.message}"


def html_of(found: Difference) -> str:
    """Returns the comparison as a fragment for light and dark pages; names and messages are escaped."""
    lines = _lines(found)
    return _template().render(
        headline=headline_of(found),
        style="color: #cf222e" if found.regressed else "",
        sentences=[f"old: {_outcome(found.old)}", f"new: {_outcome(found.new)}", *_unlike(found)],
        headers=HEADERS,
        lines=lines,
        explanations=[(name, in_one_line(message)) for name, message in _explanations(found)],
    )


@cache
def _template() -> Template:
    from jinja2 import Environment  # here and not above: importing torch_gradcheck must stay quick

    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(FRAGMENT)


FRAGMENT = """
<div class="torch-gradcheck-comparison">
<style>.torch-gradcheck-comparison :is(th, td) { text-align: left; white-space: nowrap; }</style>
<p><strong style="{{ style }}">{{ headline }}</strong></p>
{% for sentence in sentences %}
<p>{{ sentence }}</p>
{% endfor %}
{% if lines %}
<table>
<thead><tr>{% for header in headers %}<th>{{ header }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in lines %}
<tr>{% for cell in line.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% for name, message in explanations %}
<p><code>{{ name }}</code>: {{ message }}</p>
{% endfor %}
</div>
"""
