"""The trial of one parameter: its gradient, the results entry by entry, and what random directions proved."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.verdicts.entry_check import EntryResults


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
        coordinates: shape (N,), the flat coordinates that were tried.
        analytic: shape (N,), the gradient on trial at these coordinates.
        reached: whether the backward reached the parameter at all.
        results: of these coordinates.
        evaluations, seconds: how often J was evaluated for this parameter, and the wall time in seconds.
        proof: what random directions proved; None for the exact method.
        jointly: how many wrong entries J contradicts along a direction through all of them, though each has a kink.
        by_convention: how many undecided entries are a choice of one slope for each of several kinks of J that meet.
    """

    coordinates: Indices
    analytic: Floats
    reached: bool
    results: EntryResults
    evaluations: int
    seconds: float
    proof: Proof | None = None
    jointly: int = 0
    by_convention: int = 0
