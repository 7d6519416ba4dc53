"""Autograd's gradient of J by two backward runs: where they differ by rounding, and where they are not one function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, blocks, largest_entry
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.backward_record import BackwardRecord, start_of_difference
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.gradients.watched_backwards import Place
from torch_gradcheck.objective.objective import ROUNDOFF_BETWEEN_CALLS, Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon

MARGIN = 3.0
"""An error bar is three times as wide as two runs lie apart: there may be others that lie further apart."""

Gradients = Mapping[int, AnalyticGradient]


SEEN = 3.0
"""Differences of J resolve a gradient whose largest entry is three of their error bars."""

BESIDE_ROUNDING = 0.1
"""A node that gives gradients as far apart as a tenth of the tolerance does more than round."""


@dataclass(frozen=True)
class Difference:
    """What two runs of a backward do not agree on, by more than rounding.

    Attributes:
        spreads: position in θ → the largest difference between two runs relative to the largest entry of the gradient;
            of the parameters for which it is more than rounding.
        allowed: up to where the spread of the worst parameter would have been rounding.
        runs: shape (runs, coordinates), the gradients of that parameter in all runs.
        alike: shape (runs, runs), which runs agree up to rounding.
        place: the node at which it starts; None where every node gives the same, or the runs cannot be compared.
        on_the_way: that node gives what it is given, and is given something else: a hook has changed it on the way.
    """

    spreads: Mapping[int, float]
    allowed: float
    runs: Floats
    alike: Flags
    place: Place | None
    on_the_way: bool

    @property
    def worst(self) -> int:
        """The position of the parameter with the largest spread."""
        return max(self.spreads, key=lambda position: self.spreads[position])

    @property
    def spread(self) -> float:
        """The largest of the spreads."""
        return self.spreads[self.worst]


@dataclass(frozen=True)
class RepeatedGradients:
    """The gradients of the first of two runs of the backward, and how far the second lies from it.

    Attributes:
        gradients: of the first run, by position in θ, with error bars where the second differs.
        rounding: the largest difference that counts as rounding, relative to the largest entry of its gradient; 0 where
            the runs agree to the bit.
        difference: what is more than rounding; None where nothing is.
    """

    gradients: Gradients
    rounding: float = 0.0
    difference: Difference | None = None


def repeated_gradients(
    objective: Objective, theta: Theta, tolerance: float, resolved: Callable[[], float]
) -> RepeatedGradients:
    """Autograd's gradients of J by two runs of forward and backward from the same state; a few more if they differ.

    A difference counts as rounding, and joins the error bar of the gradient, up to `tolerance` of the largest entry of
    its tensor or 1000 machine epsilons of the largest entry of all. The first allows for kernels that add float32
    numbers in any order: no verdict depends on it. The second is what two values of J may differ by, and allows for
    entries in which large terms cancel. Where the whole tensor is too small for differences of J to resolve, as one
    that is 0 but for rounding, so may be a difference that they do not resolve.

    Args:
        objective: J; it is evaluated twice, or up to four times where the runs differ by more than rounding.
        theta: the parameters.
        tolerance: the largest relative error that passes.
        resolved: gives the error bar of a difference of J; called where the runs differ.
    """
    records = [BackwardRecord(objective.model), BackwardRecord(objective.model)]
    runs = [_recorded(record, objective, theta) for record in records]
    apart = _apart(runs)
    if not any(apart.values()):
        return RepeatedGradients(runs[0])
    sizes = _sizes(runs)
    allowed = _allowed(sizes, objective, tolerance, resolved())
    relative = {position: _ratio(off, sizes[position]) for position, off in apart.items()}
    beyond = [position for position, off in apart.items() if not off <= allowed[position]]
    bars = {position: math.inf if position in beyond else MARGIN * off for position, off in apart.items()}
    return RepeatedGradients(
        {position: replace(each, error_bar=bars[position]) for position, each in runs[0].items()},
        max((share for position, share in relative.items() if position not in beyond), default=0.0),
        _difference(objective, theta, records, runs, {p: allowed[p] for p in beyond}, tolerance) if beyond else None,
    )


def beyond_rounding_of(
    gradients: Gradients, other: Gradients, objective: Objective, tolerance: float, resolved: float
) -> dict[int, float]:
    """Position in θ → the largest difference, where it is more than rounding by the rule of `repeated_gradients`.

    Args:
        gradients: of J.
        other: of the same J, at some of the positions.
        objective: J.
        tolerance: the largest relative error that passes.
        resolved: the error bar of a difference of J.
    """
    sizes = _sizes([gradients])
    allowed = _allowed(sizes, objective, tolerance, resolved)
    off = {position: _distance(gradients[position].values, each.values) for position, each in other.items()}
    return {position: distance for position, distance in off.items() if not distance <= allowed[position]}


def _allowed(sizes: Mapping[int, float], objective: Objective, tolerance: float, resolved: float) -> dict[int, float]:
    """Up to which difference two gradients with these largest entries may be apart by rounding, by position."""
    floor = ROUNDOFF_BETWEEN_CALLS * epsilon(objective.dtype) * max(sizes.values())
    return {
        position: max(tolerance * size, floor, resolved if size <= SEEN * resolved else 0.0)
        for position, size in sizes.items()
    }


def _recorded(record: BackwardRecord, objective: Objective, theta: Theta) -> Gradients:
    with record:
        return autograd_gradients(objective, theta, at_theta=True)


def _difference(
    objective: Objective,
    theta: Theta,
    records: Sequence[BackwardRecord],
    runs: list[Gradients],
    allowed: Mapping[int, float],
    tolerance: float,
) -> Difference:
    """What differs of the parameters with an entry in `allowed`, with one or two runs more to see a pattern."""

    def alike(one: Gradients, other: Gradients) -> bool:
        off = _apart([{p: one[p] for p in allowed}, other])
        return all(off[position] <= limit for position, limit in allowed.items())

    runs.append(autograd_gradients(objective, theta, at_theta=True))
    if alike(runs[0], runs[2]):
        runs.append(autograd_gradients(objective, theta, at_theta=True))
    apart, sizes = _apart(runs), _sizes(runs)
    spreads = {position: _ratio(apart[position], sizes[position]) for position in allowed}
    worst = max(allowed, key=lambda position: spreads[position])
    event = start_of_difference(records[0], records[1], BESIDE_ROUNDING * tolerance)
    return Difference(
        spreads,
        _ratio(allowed[worst], _sizes(runs[:2])[worst]),
        np.array([run[worst].values for run in runs]),
        np.array([[alike(one, other) for other in runs] for one in runs]),
        None if event is None else records[0].place(event.node),
        event is not None and not event.leaves,
    )


def _apart(runs: Sequence[Gradients]) -> dict[int, float]:
    """The largest distance of an entry from that of the first run, by position; infinite where only one is NaN."""
    first, *others = runs
    return {
        position: max(_distance(each.values, run[position].values) for run in others)
        for position, each in first.items()
    }


def _distance(one: Floats, other: Floats) -> float:
    return max([_distance_of_block(one[block], other[block]) for block in blocks(len(one))], default=0.0)


def _distance_of_block(one: Floats, other: Floats) -> float:
    if np.array_equal(one, other, equal_nan=True):
        return 0.0
    with np.errstate(all="ignore"):
        off = np.abs(one - other)
        off[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
    return float(np.max(np.nan_to_num(off, nan=np.inf)))


def _sizes(runs: Sequence[Gradients]) -> dict[int, float]:
    """The largest finite entry of each gradient in all runs, by position."""
    return {position: max([largest_entry(run[position].values) for run in runs]) for position in runs[0]}


def _ratio(off: float, size: float) -> float:
    return off / size if size else math.inf if off else 0.0
