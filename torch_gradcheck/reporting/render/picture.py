"""The picture of where a tensor is wrong, where there is something to see in it: rows, columns, blocks, stripes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import WrongMap
from torch_gradcheck.reporting.printable import printable

SHADES = "·░▒▓█"
"""Characters of a cell, from all right to more than three quarters wrong."""

SHARES = ("none wrong", "up to ¼", "up to ½", "up to ¾", "up to all")
"""What each shade stands for, where a cell is a block of entries."""

SURE = 4.0
"""Neighbours are alike, or unlike, by more than chance where they are so by 4 standard deviations."""

NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (0, 3), (0, 4), (0, 8))
"""Steps from a cell to its neighbours: to the right, down, along both diagonals, and across the width of a stripe."""

RUN = 3
"""Wrong cells that lie side by side in the only line, and nowhere else: fewer may do so by chance."""

Cells = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """The places of the wrong entries: a caption, lines of characters, and cells as fractions (None: not judged)."""

    caption: str
    lines: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]


def picture_of(found: WrongMap) -> Picture | None:
    """Returns the picture; None where all judged cells are equal, one is wrong, or the wrong ones lie at random."""
    if not _has_structure(found.cells):
        return None
    lines = tuple("".join(map(_shade, line)) for line in found.cells)
    return Picture(
        caption=f"where ({_size(found)}): {_legend(found, set().union(*lines))}",
        lines=lines,
        cells=tuple(tuple(None if math.isnan(share) else share for share in line) for line in found.cells),
    )


def _size(found: WrongMap) -> str:
    size = " × ".join(printable(part) for part in (found.down, found.across) if part)
    down, across = found.block
    return size if found.block == (1, 1) else f"{size}, a cell is {down} × {across}"


def _legend(found: WrongMap, shades: set[str]) -> str:
    """Returns what every shade that occurs means, and the blank."""
    if {share for line in found.cells for share in line if not math.isnan(share)} <= {0.0, 1.0}:
        words = [f"{SHADES[-1]} wrong", f"{SHADES[0]} right"]
    else:
        words = [f"{shade} {share}" for shade, share in zip(SHADES, SHARES, strict=True) if shade in shades]
    return ", ".join([*words, "blank not judged"] if " " in shades else words)


def _shade(share: float) -> str:
    if math.isnan(share):
        return " "
    return SHADES[math.ceil(min(max(share, 0.0), 1.0) * (len(SHADES) - 1))]


def _has_structure(cells: Cells) -> bool:
    """Whether the wrong cells make a pattern: one run, whole rows or columns, or neighbours alike beyond chance."""
    judged = [share for line in cells for share in line if not math.isnan(share)]
    if len(set(judged)) < 2 or sum(share > 0 for share in judged) < 2:
        return False
    columns = [[line[k] for line in cells if k < len(line)] for k in range(max(map(len, cells)))]
    return (
        (len(cells) == 1 and _is_one_run(judged))
        or _in_whole_lines(cells)
        or _in_whole_lines(columns)
        or any(_is_no_chance(cells, judged, down, across) for down, across in NEIGHBOURS)
    )


def _is_one_run(line: Sequence[float]) -> bool:
    wrong = [k for k, share in enumerate(line) if share > 0]
    return len(wrong) >= RUN and wrong[-1] - wrong[0] == len(wrong) - 1 and len(line) - len(wrong) >= RUN


def _in_whole_lines(lines: Sequence[Sequence[float]]) -> bool:
    """Whether each of several lines is all right or all wrong, some of more than one cell."""
    judged = [[share for share in line if not math.isnan(share)] for line in lines]
    return any(len(line) > 1 for line in judged) and all(len(set(line)) < 2 for line in judged)


def _is_no_chance(cells: Cells, judged: Sequence[float], down: int, across: int) -> bool:
    """Whether cells differ from their neighbours in one direction as they would not if they were shuffled."""
    steps = [abs(one - other) for one, other in _pairs(cells, down, across)]
    if not steps:
        return False
    mean = _mean_distance(judged)
    square = 2 * (sum(share * share for share in judged) / len(judged) - (sum(judged) / len(judged)) ** 2)
    spread = math.sqrt(max(square - mean * mean, 0.0) / len(steps))
    return abs(sum(steps) / len(steps) - mean) > SURE * spread


def _pairs(cells: Cells, down: int, across: int) -> Iterator[tuple[float, float]]:
    for y, line in enumerate(cells[: len(cells) - down]):
        for x, share in enumerate(line):
            below = cells[y + down]
            if 0 <= x + across < len(below) and not (math.isnan(share) or math.isnan(below[x + across])):
                yield share, below[x + across]


def _mean_distance(values: Sequence[float]) -> float:
    """Returns the mean of |a − b| over all pairs of different cells."""
    count = len(values)
    total = sum((2 * k - count + 1) * value for k, value in enumerate(sorted(values)))
    return 2 * total / (count * (count - 1))
