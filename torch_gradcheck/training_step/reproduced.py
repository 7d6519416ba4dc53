"""Mistakes in `.grad` that rounding would hide, but not in a step whose rerun gives most numbers to the last digit.

A coarse precision may move a right gradient by ten percent. But the same computation rounds alike when it is run again.
Where all other tensors of a step are its rerun's to the last digit, one that is off by more than its own last operation
rounds was changed afterwards: noise was added to it, for example. And where every number of `.grad` is held by a
precision that the rerun's are not held by, it was rounded to that precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.precision.lower_precisions import held_by, rounding_of_all
from torch_gradcheck.training_step.error_bars import Bars
from torch_gradcheck.training_step.judge import Judged, judge

ROUNDS_ALIKE = 2.0
"""Two numbers are the same where they differ by at most 2 machine epsilons of `.grad`."""

ENOUGH_TENSORS, ENOUGH_ENTRIES = 3, 32
"""Other tensors, and entries in them, that have to be the rerun's before one that is not is thought of as changed."""

MOST_UNLIKE = 0.25
"""The largest share of the other tensors that may not be the rerun's."""

OWN_ROUNDINGS = 2.0
"""How many machine epsilons of the step's coarsest precision a tensor's own last operation may move an entry by: of
the entry, and of the root mean square of all."""

ENOUGH_BITS = 40.0
"""How improbable it has to be that all numbers of `.grad` are held by a lower precision by chance: 2⁻⁴⁰."""


def judged_by_rerun(
    judged: Mapping[int, Judged],
    plain: Mapping[int, Floats],
    again: Mapping[int, Floats],
    summing: Mapping[int, Floats],
    own_epsilon: Mapping[int, float],
    coarsest: float,
    tolerance: float,
) -> dict[int, Judged]:
    """The gradients, those marked as wrong that the rerun of the step shows to have been changed.

    Args:
        judged: what was found so far, by position in θ.
        plain: the rerun, as the loop clips it.
        again: a second rerun, by other threads and with the casts of autocast kept; nothing is found without it.
        summing: how far the sum over ranks, which no rerun repeats, may have moved each entry.
        own_epsilon: machine epsilons of the tensors.
        coarsest: machine epsilon of the coarsest precision that the step computed in.
        tolerance: the relative error that passes.
    """
    given = {position: each.trial.analytic for position, each in judged.items()}
    found = dict(judged)
    repeatable = set(again) >= set(given)
    error_bars = _of_rounded(given, [plain, again], own_epsilon) if repeatable else {}
    for position in _changed(given, plain, again, own_epsilon) if repeatable else []:
        size = float(np.sqrt(np.mean(plain[position] ** 2)))
        error_bars.setdefault(position, OWN_ROUNDINGS * coarsest * (np.abs(plain[position]) + size))
    for position, error_bar in error_bars.items():
        if not judged[position].is_wrong and _is_resolved(judged[position]):
            trial = judged[position].trial
            error = error_bar + summing[position]
            beside = replace(trial, results=replace(trial.results, numeric=plain[position], error_bar=error))
            again_judged = judge(beside, Bars(0.0, math.inf), tolerance)
            found[position] = again_judged if again_judged.is_wrong else judged[position]
    return found


def _is_resolved(judged: Judged) -> bool:
    """Whether rounding leaves anything of the gradient: what is left of one that cancels is no two runs' the same."""
    return bool(judged.bars.norm <= np.linalg.norm(judged.trial.results.numeric))


def _alike(one: Floats, other: Floats, epsilon: float) -> Flags:
    return np.asarray(np.abs(one - other) <= ROUNDS_ALIKE * epsilon * np.abs(other))


def _changed(
    given: Mapping[int, Floats],
    plain: Mapping[int, Floats],
    again: Mapping[int, Floats],
    own_epsilon: Mapping[int, float],
) -> list[int]:
    """The tensors that are not the rerun's although two reruns agree on them, and nearly all others are the rerun's."""
    informative = [position for position in given if np.any(plain[position])]
    alike = {at: bool(_alike(given[at], plain[at], own_epsilon[at]).all()) for at in informative}
    same = [position for position in informative if alike[position]]
    if len(same) < ENOUGH_TENSORS or sum(len(given[position]) for position in same) < ENOUGH_ENTRIES:
        return []
    others_unlike = len(informative) - len(same) - 1
    if others_unlike > MOST_UNLIKE * (len(informative) - 1):
        return []
    return [at for at in informative if not alike[at] and _alike(again[at], plain[at], own_epsilon[at]).all()]


def _of_rounded(
    given: Mapping[int, Floats], reruns: Sequence[Mapping[int, Floats]], own_epsilon: Mapping[int, float]
) -> dict[int, Floats]:
    """Error bars of the tensors that were rounded to a lower precision: half a unit in the last place of their own.

    Autocast itself sums in its precision what a weight that is used several times gets, where it keeps what it has
    cast. So neither rerun may give such numbers.
    """
    by_name: dict[str, list[int]] = {}
    for position, values in given.items():
        rounding = rounding_of_all([values])
        if rounding is not None and rounding.epsilon > own_epsilon[position]:
            by_name.setdefault(rounding.name, []).append(position)
    return {
        position: own_epsilon[position] / 2 * np.abs(reruns[0][position])
        for name, positions in by_name.items()
        if all(_is_no_chance(name, [rerun[position] for position in positions]) for rerun in reruns)
        for position in positions
    }


def _is_no_chance(name: str, rerun: list[Floats]) -> bool:
    """Whether so many numbers are hardly all held by a precision, as few of the rerun's as are."""
    numbers = np.concatenate(rerun)
    numbers = numbers[numbers != 0]
    held = float(np.sum(held_by(name, numbers)))
    return len(numbers) * math.log2((len(numbers) + 2) / (held + 1)) >= ENOUGH_BITS
