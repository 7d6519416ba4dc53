"""One parameter tried: its gradient on trial, the results entry by entry, and what directions proved."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.verdicts.entry_check import EntryResults


@dataclass(frozen=True)
class Proof:
    """What was proven of one tensor's gradient without looking at every entry of it.

    Attributes:
        directions: how many random directions it was verified along; 0 where J's slopes did not bear it out.
        resolution: how far from J's slope it may be along one of them, as the length of an error in the gradient.
        detectable: the length of an error that would have been missed with odds of `ODDS`.
        refuted: J's slope along directions through the tensor is not that of the gradient on trial.
        remark: what else there is to say, a sentence or nothing.
    """

    directions: int = 0
    resolution: float = inf
    detectable: float = inf
    contradicted: bool = False
    remark: str = ""


@dataclass(frozen=True)
class ParameterTrial:
    """One parameter's gradient on trial, the answer to it, and what that cost.

    Attributes:
        coordinates: shape (N,), the flat coordinates that were tried.
        analytic: shape (N,), the gradient on trial there.
        reached: whether the backward reached the parameter at all.
        answer: what was found, coordinate by coordinate.
        evaluations, seconds: how often J was evaluated for it, and the wall time.
        proof: what directions proved, where not every coordinate was looked at.
    """

    coordinates: Indices
    analytic: Floats
    reached: bool
    results: EntryResults
    evaluations: int
    seconds: float
    proof: Proof | None = None
