"""The error bars of `.grad`: the distance that rounding in the step's own precision may move a correct gradient.

The bars are measured. The step's own computation is run again in its own precisions, plainly and a few times with
rounding as noise; the spread of these runs is the bar. The kernels of a coarse dtype can do more than round at random:
sums stagnate, results underflow. Where the plain run is further from float64 than the spread explains, these kernels
are run under float64 Python, and their error is allowed too. An error that only the user's code makes in that dtype is
not allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.rounding_noise import KernelsInMode
from torch_gradcheck.verdicts.trial import ParameterTrial

MARGIN = 6.0
"""The error bar, in multiples of the furthest noisy run. Over 2,200 tensors of correct models in float32, bfloat16,
float16 and under autocast the plain run was off by at most 2.3 times the noisy ones."""

KERNEL_ERROR = 3.0
"""Where the plain rerun is further from float64 than noise explains, the excess is accepted up to this many times the
error measured for the kernels of its dtype."""

KERNEL_RUNS = 3
"""Runs of the kernels in a coarser dtype whose error is measured; the largest counts."""


class Bars(NamedTuple):
    """The distance that rounding may move a tensor's gradient: any one entry of it, or each, and all of it in norm."""

    entry: Floats | float
    norm: float

    def times(self, factor: float) -> Bars:
        """The bars of a gradient that is scaled by this factor."""
        return Bars(self.entry * factor, self.norm * factor)

    def beside(self, error: Floats) -> Bars:
        """The bars where something else may move each entry by this much."""
        return Bars(self.entry + error, self.norm + float(np.linalg.norm(error)))


def bars_of(replayed: Sequence[Floats], autograd_float64: Floats, kernels: Callable[[], Sequence[Floats]]) -> Bars:
    """The distance that rounding may move a correct gradient from autograd's own in the precision of the check."""
    if not replayed:
        return furthest(kernels(), autograd_float64, MARGIN)
    plain, *noisy = replayed
    bars = spread(plain, noisy)
    off = furthest([plain], autograd_float64)
    if np.all(off.entry <= bars.entry) and off.norm <= bars.norm:
        return bars
    systematic = furthest(kernels(), autograd_float64, KERNEL_ERROR)
    entry, norm = np.minimum(off.entry, systematic.entry), min(off.norm, systematic.norm)
    return Bars(bars.entry + 1.5 * entry, bars.norm + 1.5 * norm)


def spread(plain: Floats, noisy: Sequence[Floats]) -> Bars:
    """The error bars from the spread of noisy runs around the plain one."""
    return furthest(noisy, plain, MARGIN)


def spread_by_entry(plain: Floats, noisy: Sequence[Floats], rows: int) -> Floats:
    """The distance that noisy runs moved each entry, or entries like it: those of its row and of its column.

    The estimate from an entry's row and column is their product divided by the mean of all, as if they moved
    independently.

    Args:
        plain: the plain run.
        noisy: those with noise.
        rows: how many rows of equal length the entries make up.
    """
    with np.errstate(all="ignore"):
        moved = np.nan_to_num(reduce(np.maximum, [np.abs(run - plain) for run in noisy]), nan=np.inf)
        alike = np.sqrt(of_entries_alike(np.square(moved), (rows, moved.size // max(rows, 1))))
    return np.asarray(np.maximum(moved, alike))


def of_entries_alike(squares: Floats, shape: Sequence[int]) -> Floats:
    """Squares of errors as entries of the same row, column or slice suggest them, along every axis.

    The means over the slices that an entry is in, multiplied, by the mean of all for every axis but one, as if each
    axis had a factor of its own.

    Args:
        squares: shape (coordinates,).
        shape: of the tensor; its product is the number of coordinates.
    """
    if not squares.size:
        return squares
    folded = squares.reshape(shape)
    whole, axes = folded.mean(), range(folded.ndim)
    alike = np.full((1,) * folded.ndim, whole)
    with np.errstate(all="ignore"):
        for axis in axes:
            others = tuple(each for each in axes if each != axis)
            alike = alike * (folded.mean(axis=others, keepdims=True) / whole)
    return np.asarray(np.nan_to_num(np.broadcast_to(alike, folded.shape), nan=0.0).ravel())


def furthest(runs: Sequence[Floats], autograd_float64: Floats, margin: float = 1.0) -> Bars:
    """The largest distance of a run, times the margin; infinite where a run is not finite."""
    with np.errstate(all="ignore"):
        entries, norms = zip(*[_distance(run, autograd_float64) for run in runs], strict=True)
        entry = max(entries)
        norm = max(norms) if np.isfinite(entry) else np.inf
    return Bars(margin * float(entry), margin * float(norm))


def _distance(run: Floats, autograd_float64: Floats) -> tuple[float, float]:
    """The largest distance of an entry, and that of all."""
    off = np.nan_to_num(np.abs(run - autograd_float64), nan=np.inf)
    return float(np.max(off, initial=0.0)), float(np.linalg.norm(off))


class KernelGradients:
    """Gradients by torch's kernels of a coarser dtype under the Python of the check; computed when first asked for."""

    def __init__(self, objective: Objective, theta: Theta, dtype: torch.dtype, seed: int) -> None:
        self._objective, self._theta, self._dtype, self._seed = objective, theta, dtype, seed

    def of(self, position: int, trial: ParameterTrial) -> list[Floats]:
        """Of the coordinates of one parameter that were tried, a run each."""
        return [trial.at(run[position].values) for run in self._runs]

    @cached_property
    def _runs(self) -> list[dict[int, AnalyticGradient]]:
        generator = torch.Generator().manual_seed(self._seed)
        mode = KernelsInMode(self._objective.dtype, self._dtype, generator)
        return [autograd_gradients(self._objective, self._theta, mode, at_theta=True) for _ in range(KERNEL_RUNS)]
