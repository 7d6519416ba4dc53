"""The drawings of one wrong tensor: its heat maps and its scatter, with captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import ParameterReport, WrongMap
from torch_gradcheck.reporting.printable import printable
from torch_gradcheck.reporting.render.html.heat_map import Panel, heat_maps
from torch_gradcheck.reporting.render.html.scatter import Scatter, scatter


@dataclass(frozen=True, slots=True)
class Drawings:
    """What a page draws of a wrong tensor.

    Attributes:
        panels: the heat maps; none where the tensor has one entry, or too many others are drawn.
        of_panels: what their cells are.
        scatter: of both gradients against each other; None where there are fewer than two entries.
    """

    panels: tuple[Panel, ...] = ()
    of_panels: str = ""
    scatter: Scatter | None = None


def drawings_of(row: ParameterReport | None, sides: tuple[str, str]) -> Drawings:
    """Returns the drawings of a wrong row; those of None are empty."""
    if row is None:
        return Drawings()
    panels = () if row.map is None or row.checked < 2 else tuple(heat_maps(row.map, sides))
    words = "" if row.map is None else _cells_in_words(row.map)
    if row.pairs is None or len(row.pairs.entries) < 2:
        return Drawings(panels, words)
    return Drawings(panels, words, scatter(row.pairs, sides, row.checked))


def _cells_in_words(found: WrongMap) -> str:
    """What the panels are of: "40 rows × 60 columns. A cell is 3 × 2 entries and shows the one furthest off"."""
    size = " × ".join(printable(part) for part in (found.down, found.across) if part)
    if math.prod(found.block) == 1:
        return f"{size}, a cell an entry"
    down, across = found.block
    cell = f"{down} × {across}" if found.down else f"{across}"
    shown = ", and shows that which is furthest off" if found.analytic else ""
    return f"{size}; a cell is {cell} entries{shown}"
