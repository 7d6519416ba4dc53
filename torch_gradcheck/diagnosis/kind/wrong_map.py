"""A small picture of a tensor: block by block the share of wrong entries, and both gradients where they differ most."""

from __future__ import annotations

import math

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.places import words_of_axis
from torch_gradcheck.reporting.facts import WrongMap

ROWS, COLUMNS = 16, 48
"""A picture has at most 16 × 48 cells; a cell of a larger tensor stands for a block of entries."""


def wrong_map(evidence: Evidence, aligned: bool = False) -> WrongMap:
    """The picture of a gradient: the first axis runs down, all other axes across; a tensor of one axis is one line.

    Args:
        evidence: which entries are wrong.
        aligned: cells are as long as a power of two, so that the blocks of a kernel and the tail end with a cell.
    """
    rows, columns = _two_dimensional(evidence.shape)
    block = (_length(rows, ROWS, aligned), _length(columns, COLUMNS, aligned))
    judged = evidence.judged | evidence.wrong
    with np.errstate(invalid="ignore"):
        share = _summed(evidence.wrong, rows, columns, block) / _summed(judged, rows, columns, block)
    analytic, numeric = _furthest_apart(evidence, rows, columns, block)
    return WrongMap(_numbers(share), *_labels(evidence, rows, columns), block, _numbers(analytic), _numbers(numeric))


def _length(entries: int, most: int, aligned: bool) -> int:
    """How many entries are in a cell, so that there are at most so many cells."""
    least = max(1, math.ceil(entries / most))
    return 1 << (least - 1).bit_length() if aligned else least


def _two_dimensional(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _labels(evidence: Evidence, rows: int, columns: int) -> tuple[str, str]:
    shape = evidence.shape
    if len(shape) < 2:
        return "", f"{columns} entries" if columns != 1 else "1 entry"
    down, across = (words_of_axis(len(shape), axis, evidence.has_channels)[1] for axis in (0, 1))
    rest = "×".join(map(str, shape[1:]))
    return f"{rows} {down}", f"{columns} {across}" if len(shape) == 2 else f"{rest} entries of each"


def _summed(flags: Flags, rows: int, columns: int, block: tuple[int, int]) -> Floats:
    """How many flags are set in each block."""
    down, across = math.ceil(rows / block[0]), math.ceil(columns / block[1])
    padded = np.zeros((down * block[0], across * block[1]))
    padded[:rows, :columns] = flags.reshape(rows, columns)
    return np.asarray(padded.reshape(down, block[0], across, block[1]).sum(axis=(1, 3)))


def _furthest_apart(evidence: Evidence, rows: int, columns: int, block: tuple[int, int]) -> Floats:
    """Both gradients, (2, lines, cells), at the judged entry of each block where they are furthest apart."""
    analytic, numeric = evidence.analytic.reshape(rows, columns), evidence.numeric.reshape(rows, columns)
    judged, wrong = evidence.judged.reshape(rows, columns), evidence.wrong.reshape(rows, columns)
    at = [slice(first, first + block[0]) for first in range(0, rows, block[0])]
    lines = [_line_of_blocks(analytic[k], numeric[k], judged[k] | wrong[k], block[1]) for k in at]
    return np.array(lines).reshape(len(lines), 2, math.ceil(columns / block[1])).swapaxes(0, 1)


def _line_of_blocks(analytic: Floats, numeric: Floats, judged: Flags, length: int) -> list[Floats]:
    """Both gradients of a few whole rows, where they are furthest apart in each of the blocks so many columns long."""
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(np.abs(analytic - numeric), nan=np.inf, posinf=np.inf)
    apart = np.where(judged, apart, -1.0)
    places = []
    for start in range(0, apart.shape[1], length):
        block = apart[:, start : start + length]
        row, column = divmod(int(np.argmax(block)), block.shape[1])
        places.append((row, start + column))
    at = tuple(np.array(places, dtype=np.int64).reshape(-1, 2).T)
    return [np.where(apart[at] >= 0, values[at], np.nan) for values in (analytic, numeric)]


def _numbers(grid: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple([tuple(line) for line in grid.tolist()])
