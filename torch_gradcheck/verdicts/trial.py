"""The trial of one parameter: its gradient, the results entry by entry, and what random directions proved."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.verdicts.entry_check import EntryResults

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Proof:
    """What random directions prove of one tensor's gradient. Not every entry of the tensor was differenced.

    Attributes:
        directions: how many random directions verified the gradient; 0 where J's slopes contradict it.
        resolution: the smallest error that one direction resolves, as its 2-norm ‖e‖ in the gradient.
        detectable: ‖e‖ of an error that all directions would have missed with a probability of at most 1e-6.
        contradicted: J's slopes along directions through the tensor contradict the gradient on trial.
        remark: one more sentence for the report, or "".
    """

    directions: int = 0
    resolution: float = inf
    detectable: float = inf
    contradicted: bool = False
    remark: str = ""


@dataclass(frozen=True)
class ParameterTrial:
    """The trial of one parameter's gradient.

    Attributes:
        coordinates: shape (N,), the flat coordinates that were tried, sorted; a range where they are all of
            the tensor's, which may be millions.
        analytic: shape (N,), the gradient on trial at these coordinates.
        reached: whether the backward reached the parameter at all.
        results: of these coordinates.
        evaluations, seconds: how often J was evaluated for this parameter, and the wall time in seconds.
        proof: what random directions proved; None for the exact method.
        jointly: how many wrong entries J contradicts along a direction through all of them, though each has a kink.
        by_convention: how many undecided entries are a choice of one slope for each of several kinks of J that meet.
    """

    coordinates: Indices | range
    analytic: Floats
    reached: bool
    results: EntryResults
    evaluations: int
    seconds: float
    proof: Proof | None = None
    jointly: int = 0
    by_convention: int = 0

    def at(self, values: NDArray[Number]) -> NDArray[Number]:
        """Numbers of the whole tensor at the coordinates that were tried: not a copy where these are all."""
        return values if isinstance(self.coordinates, range) else values[self.coordinates]

    def flat(self, entries: Indices) -> Indices:
        """The flat coordinates of some of the entries that were tried."""
        return entries if isinstance(self.coordinates, range) else self.coordinates[entries]

    def entries(self, coordinates: Any) -> Indices:
        """The entries that these flat coordinates are; they were tried."""
        whole = isinstance(self.coordinates, range)
        return np.asarray(coordinates if whole else np.searchsorted(self.coordinates, coordinates))
