"""The entries of a tensor that its row shows: the worst ones in figures, and more of them for a plot."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Floats, Indices, blocks
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import Coordinate, Pairs, Status
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

WORST = 10
"""How many coordinates a row keeps, those furthest off."""

PLOTTED_WRONG, PLOTTED = 256, 24
"""How many entries of a wrong tensor are kept for a plot, and how many of any other."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill an interval evenly and never in step with the rows of a tensor."""

STATUS = {
    Outcome.MATCH: Status.MATCH,
    Outcome.KINK: Status.KINK,
    Outcome.UNDECIDED: Status.UNDECIDED,
    Outcome.MISMATCH: Status.MISMATCH,
}


def how_far_off(trial: ParameterTrial, block: slice) -> Floats:
    """How far the entries of a block are off."""
    return np.abs(trial.analytic[block] - trial.results.numeric[block])


def furthest_entries(trial: ParameterTrial, in_bars: bool = False) -> Indices:
    """The `WORST` entries: wrong ones first, and among equal outcomes those furthest off first.

    Args:
        trial: of the tensor's gradient.
        in_bars: the furthest in multiples of their error bars.
    """
    among = [_furthest_in(trial, block, in_bars) for block in blocks(len(trial.analytic))]
    candidates = np.concatenate([*[places for places, _ in among], np.empty(0, dtype=np.int64)])
    off, outcome = np.concatenate([*[far for _, far in among], np.empty(0)]), trial.results.outcome[candidates]
    return np.asarray(candidates[np.lexsort((candidates, -off, -outcome))[:WORST]])


def _furthest_in(trial: ParameterTrial, block: slice, in_bars: bool) -> tuple[Indices, Floats]:
    """Entries of a block with the `WORST` of every outcome among them, and how far off they are."""
    with np.errstate(all="ignore"):
        unit = trial.results.error_bar[block] if in_bars else 1.0
        off = np.nan_to_num(how_far_off(trial, block) / unit, nan=np.inf)
    outcome = trial.results.outcome[block]
    places = np.concatenate([_largest(off, np.flatnonzero(outcome == value)) for value in STATUS])
    return places + block.start, off[places]


def _largest(off: Floats, among: Indices) -> Indices:
    """The `WORST` that are furthest off, the first of equal ones; by partition, since there may be millions."""
    if len(among) <= WORST:
        return among
    least = np.partition(off[among], len(among) - WORST)[len(among) - WORST]
    return np.concatenate([among[off[among] > least], among[off[among] == least][:WORST]])


def coordinates_of(entry: ThetaEntry, trial: ParameterTrial, entries: Indices) -> list[Coordinate]:
    """These entries of a trial, with their places in the tensor."""
    return [_coordinate(entry, trial, int(k)) for k in entries]


def _coordinate(entry: ThetaEntry, trial: ParameterTrial, k: int) -> Coordinate:
    results = trial.results
    index, part = entry.locate(int(trial.coordinates[k]))
    outcome = int(results.outcome[k])
    slopes = (float(results.left[k]), float(results.right[k])) if outcome == Outcome.KINK else None
    return Coordinate(
        index,
        float(trial.analytic[k]),
        float(results.numeric[k]),
        float(results.error_bar[k]),
        STATUS[outcome],
        part,
        slopes,
    )


def pairs_of(trial: ParameterTrial, worst: Indices) -> Pairs | None:
    """Entries of both gradients to plot: all of a few; else the worst, some of the wrong ones, and some of all.

    Nothing is drawn at random: the same trial gives the same entries.
    """
    if not len(trial.analytic):
        return None
    at = _plotted(trial, worst)
    return Pairs(
        entries=tuple([int(trial.coordinates[k]) for k in at]),
        analytic=tuple(trial.analytic[at].tolist()),
        numeric=tuple(trial.results.numeric[at].tolist()),
        wrong=tuple((trial.results.outcome[at] == Outcome.MISMATCH).tolist()),
    )


def _plotted(trial: ParameterTrial, worst: Indices) -> Indices:
    count, outcome = len(trial.analytic), trial.results.outcome
    is_wrong = bool(len(worst)) and int(outcome[worst[0]]) == Outcome.MISMATCH
    most = PLOTTED_WRONG if is_wrong else PLOTTED
    if count <= most:
        return np.arange(count)
    wrong = [_spread(np.flatnonzero(outcome[block] == Outcome.MISMATCH), most) + block.start for block in blocks(count)]
    chosen = _spread(np.concatenate(wrong), most // 2)
    some = _spread(range(count), most - len(chosen) - len(worst))
    return np.unique(np.concatenate([worst, chosen, some]))


def _spread(among: Indices | range, most: int) -> Indices:
    """At most so many of the entries, evenly spread over all of them, in order."""
    if len(among) <= most:
        return np.asarray(among, dtype=np.int64)
    places = np.unique((np.arange(1, most + 1) * GOLDEN % 1.0 * len(among)).astype(np.int64))
    return np.asarray(places if isinstance(among, range) else among[places])
