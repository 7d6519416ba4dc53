"""Heat maps of a wrong tensor: where it is wrong, and both gradients and their difference at the same places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch_gradcheck.reporting.facts import WrongMap
from torch_gradcheck.reporting.render.figures import figure

SHADES = 8
"""How many shades a colour has, from faint to full."""

LEAST, MOST, WIDEST = 7, 20, 210
"""Pixels of the smallest cell, of the largest one, and of a drawing whose cells are neither."""

Grid = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One heat map: what it shows, in words, and its drawing."""

    caption: str
    drawing: str


def heat_maps(found: WrongMap, sides: tuple[str, str]) -> list[Panel]:
    """Returns the panels of a tensor: the share of wrong entries, then both gradients and the difference, where kept.

    Args:
        found: the places of the wrong entries.
        sides: what both gradients are called.
    """
    name = "share of wrong entries"
    panels = [Panel(name, drawing(found.cells, _share_class, name))] if _varies(found.cells) else []
    if not found.analytic:
        return panels
    largest = _largest([*found.analytic, *found.numeric])
    of_each = [
        _signed(side, values, largest) for side, values in zip(sides, (found.analytic, found.numeric), strict=True)
    ]
    return [*panels, *of_each, _signed("difference", found.differences, _largest(found.differences))]


def _varies(shares: Grid) -> bool:
    """Whether judged cells differ: where all of a tensor is wrong there is nothing to see."""
    return len({share for line in shares for share in line if not math.isnan(share)}) > 1


def _signed(name: str, values: Grid, largest: float) -> Panel:
    """The panel of numbers of both signs; full colour is the largest size."""
    drawn = drawing(values, lambda value: _signed_class(value, largest), name)
    return Panel(f"{name}, up to ±{figure(largest)}", drawn)


def _largest(values: Grid) -> float:
    return max([abs(value) for line in values for value in line if math.isfinite(value)], default=0.0)


def _share_class(share: float) -> str:
    """The class of a share of wrong entries: not judged, right, or a shade of wrong."""
    if math.isnan(share):
        return "none"
    return f"w{max(1, math.ceil(min(share, 1.0) * SHADES))}" if share > 0 else "right"


def _signed_class(value: float, largest: float) -> str:
    """The class of a number: its sign and its shade, which grows with the square root of its size; "" for about 0."""
    if math.isnan(value):
        return "none"
    size = 1.0 if math.isinf(value) else abs(value) / largest if largest else 0.0
    shade = round(math.sqrt(size) * SHADES)
    return f"{'n' if value < 0 else 'p'}{shade}" if shade else ""


def drawing(values: Grid, class_of: Callable[[float], str], name: str) -> str:
    """Returns a grid as SVG: for each class one path, whose strokes are as wide as a line of cells.

    Args:
        values: the lines of cells.
        class_of: gives the class of a cell by its number; "" draws nothing.
        name: what a screen reader says.
    """
    strokes: dict[str, list[tuple[int, int, int]]] = {}
    for down, line in enumerate(values):
        across = 0
        for kind, cells in groupby(map(class_of, line)):
            length = len(list(cells))
            strokes.setdefault(kind, []).append((across, down, length))
            across += length
    paths = [f'<path class="{kind}" d="{_path(of_kind)}"/>' for kind, of_kind in sorted(strokes.items()) if kind]
    lines, columns = len(values), max([len(line) for line in values], default=0)
    side = max(LEAST, min(MOST, WIDEST // max(columns, lines, 1)))
    return (
        f'<svg class="heat" viewBox="0 -.5 {columns} {lines}" width="{columns * side}" height="{lines * side}" '
        f'preserveAspectRatio="none" role="img" aria-label="{name}">{"".join(paths)}</svg>'
    )


def _path(strokes: Sequence[tuple[int, int, int]]) -> str:
    """Horizontal strokes, each from its place on and so long, every one written by its way from the end of the last."""
    words, at = [], (0, 0)
    for across, down, length in strokes:
        words.append(f"m{across - at[0]} {down - at[1]}h{length}")
        at = (across + length, down)
    return "".join(words)
