"""The faults that a check would not find as a fragment of HTML, in the style of a report."""

from __future__ import annotations

from collections.abc import Sequence

from torch_gradcheck.planting.table import Hidden, outcome, together
from torch_gradcheck.reporting.printable import printable, prose
from torch_gradcheck.reporting.render.html.styles import STYLE
from torch_gradcheck.reporting.render.html.templates import filled


def fragment(hidden: Sequence[Hidden], planted: int, where: str, notes: Sequence[str]) -> str:
    """Returns the fragment; names and messages are escaped.

    Args:
        hidden: the faults that would not be found.
        planted: how many there are in all.
        where: the circumstances, on one line.
        notes: one sentence each.
    """
    return filled(
        __package__,
        "blind_spots",
        style=STYLE,
        headline=outcome(planted - len(hidden), planted),
        where=where,
        lines=[[printable(part) for part in line] for line in together(hidden)],
        notes=[prose(note) for note in notes],
    )
