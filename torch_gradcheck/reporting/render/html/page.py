"""A report laid out as HTML: the words of its outline, with the drawings of its rows."""

from __future__ import annotations

from torch_gradcheck.reporting.facts import Facts, Status
from torch_gradcheck.reporting.printable import printable
from torch_gradcheck.reporting.render.figures import raised
from torch_gradcheck.reporting.render.html.bars import bar
from torch_gradcheck.reporting.render.html.drawings import Drawings, drawings_of
from torch_gradcheck.reporting.render.html.origin import origin_of
from torch_gradcheck.reporting.render.html.styles import BODY, STYLE
from torch_gradcheck.reporting.render.html.templates import filled
from torch_gradcheck.reporting.render.mistakes import Mistake
from torch_gradcheck.reporting.render.outline import Line, headline, outline
from torch_gradcheck.reporting.words import tolerance_in_words

ROWS = 20
"""Wrong rows that a page explains, and rows that its table shows before the others are folded."""

FOLDED = 500
"""Lines of a table that is folded away; further ones are counted."""

DRAWN = 5
"""Wrong rows of which a page draws heat maps and a scatter; the others are told in words and figures."""


def html(facts: Facts) -> str:
    """Returns the report as a fragment for light and dark pages; names and messages are escaped."""
    said = outline(facts, max_rows=ROWS)
    rows = {printable(row.name): row for row in facts}
    drawn = [mistake.name for mistake in said.mistakes if mistake.entries and mistake.name in rows][:DRAWN]

    def bar_of(line: Line) -> str:
        return bar(rows[line.name], facts)

    def drawings(mistake: Mistake) -> Drawings:
        return drawings_of(rows[mistake.name] if mistake.name in drawn else None, said.sides)

    return filled(
        __package__,
        "report",
        said=said,
        most_folded=FOLDED,
        outcome=_outcome(facts),
        has_bars=any(row.relative_error is not None for row in facts),
        bar_of=bar_of,
        drawings_of=drawings,
        tolerance=None if facts.reference is not None else tolerance_in_words(facts.tolerance),
        origin=origin_of(facts),
        style=STYLE,
        reference=html(facts.reference) if facts.reference is not None and facts.has_wrong_reference else "",
    )


def page(facts: Facts, title: str) -> str:
    """Returns the report as a complete document; its title is the outcome, and `title` behind it."""
    outcome = printable(f"{headline(facts)} – {title}")
    return filled(__package__, "page", title=outcome, body=BODY, fragment=html(facts))


def _outcome(facts: Facts) -> tuple[Status, str]:
    """Returns the status whose colour the headline has, and its word."""
    if facts.is_wrong or facts.backward_spread:
        return Status.MISMATCH, "wrong"
    if facts.proven:
        return Status.MATCH, f"right{raised(facts.tolerance)}" if facts.reference is None else "right"
    return Status.UNDECIDED, "not all proven" if facts.passed else "not proven"
