"""Candidates at kinks: where numbers tie, as relu at 0, each subgradient is right, and the reference takes one of them.

Inputs of few bits collide: half of a tensor of bfloat16 may be exactly 0, the two largest numbers of a row equal. Then
J has a kink, and which side's slope a right backward gives is a convention. The reference is run in float64 beside
its inputs, moved by far less than they were rounded: what its gradient is there, on either side of a kink, spans what
may be right at the kink. Where J is smooth it stands still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from torch_gradcheck.against_reference.compared import compared
from torch_gradcheck.against_reference.computation import Computation
from torch_gradcheck.against_reference.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.judge import Judged, judged
from torch_gradcheck.against_reference.run import Run, ran
from torch_gradcheck.against_reference.sides import Candidate, lent
from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Borrowed, Start
from torch_gradcheck.objective.perturbation import Direction, real_view
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.entry_check import Outcome

DISTANCE = 1e-10
"""How far inputs are moved, relative to their root mean square: ties break, and float64 still resolves the move."""

ROUNDS = 24
"""The most pairs of points beside the inputs. Of k tied numbers each pair has one win, so that a gradient shared by all
takes k − 1; where no further entry is explained by a pair, what is left is wrong."""

SMOOTH = 1e-6
"""A right gradient that moves by less, relative to its largest entry, has no kink at the inputs."""


def judged_at_ties(
    verdicts: Sequence[Judged], reference: Computation, candidate: Candidate, request: Request, start: Start
) -> list[Judged]:
    """The verdicts; what is wrong is judged anew by the subgradient that is nearest to the candidate's.

    Args:
        verdicts: by the gradient that the reference takes.
        reference: is run twice in float64, more often where it has kinks at the inputs.
        candidate: on trial.
        request: the options.
        start: the values that the reference is given.
    """
    if not [each for each in verdicts if each.is_wrong]:
        return list(verdicts)
    with lent(reference, request, start, torch.float64) as borrowed:
        beside = _Beside(reference, candidate, borrowed, request.seed)
        spans, beyond = [_Span.of(each) for each in verdicts], 0
        for k in range(ROUNDS):
            for run in beside.pair([span.off for span in spans]):
                numbers = [each.right for each in compared(candidate, run, [])]
                spans = [span.taking_in(right) for span, right in zip(spans, numbers, strict=True)]
            found = [_anew(span, request.beyond_rounding) for span in spans]
            before, beyond = beyond, sum([span.beyond for span in spans])
            is_open = [each.is_wrong and span.has_kinks for each, span in zip(found, spans, strict=True)]
            if not any(is_open) or (k and beyond >= before):
                return found
    return [_left_open(each) if tied else each for each, tied in zip(found, is_open, strict=True)]


@dataclass(frozen=True)
class _Span:
    """Between which numbers a right tensor may be: arrays of shape (coordinates,).

    Attributes:
        judged: the tensor on trial, beside the one that the reference takes.
        low, high: the least and largest of what the reference gives beside the inputs.
    """

    judged: Judged
    low: Floats
    high: Floats

    @classmethod
    def of(cls, each: Judged) -> _Span:
        return cls(each, each.compared.right, each.compared.right)

    def taking_in(self, right: Floats) -> _Span:
        return replace(self, low=np.fmin(self.low, right), high=np.fmax(self.high, right))

    @property
    def nearest(self) -> Floats:
        """The number in the span that is nearest to the candidate's."""
        given, right = self.judged.compared.candidate[0], self.judged.compared.right
        return np.where(np.isfinite(given), np.clip(given, self.low, self.high), right)

    @property
    def off(self) -> Floats:
        """How far the candidate is from the span."""
        with np.errstate(all="ignore"):
            return np.nan_to_num(self.judged.compared.candidate[0] - self.nearest)

    @property
    def beyond(self) -> int:
        """How many entries are further from the span than rounding explains."""
        return int(np.sum(np.abs(self.off) > self.judged.bars.entry))

    @property
    def has_kinks(self) -> bool:
        with np.errstate(all="ignore"):
            size = np.max(np.maximum(np.abs(self.low), np.abs(self.high)), initial=0.0)
            return bool(np.any(self.high - self.low > SMOOTH * size))


class _Beside:
    """Runs of a lent reference beside its inputs, on both sides of them."""

    def __init__(self, reference: Computation, candidate: Candidate, borrowed: Borrowed, seed: int) -> None:
        theta = theta_of(reference.model, (), (), reference.loss.variables)
        self._parts = parts_of_gradients(candidate.theta, theta, reference.loss)
        self._leaves = [leaf for leaf, *_ in self._parts]
        self._forward, self._borrowed = reference.at(torch.float64), borrowed
        self._drawn_in = candidate.drawn_in
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def pair(self, off: Sequence[Floats]) -> list[Run]:
        """Two runs, at inputs moved along a direction and against it.

        Entries whose gradient is off move by its sign, so that a maximum of tied numbers is taken where the candidate
        took it, wherever the gradient of it is positive, and where it is negative on the way back. Others move a
        little at random.
        """
        gradients = zip(self._leaves, off, strict=False)  # those of outputs are behind them
        direction = Direction(self._leaves, [self._velocity(leaf, errors) for leaf, errors in gradients])
        return [self._ran(direction, DISTANCE), self._ran(direction, -DISTANCE)]

    def _ran(self, direction: Direction, distance: float) -> Run:
        mode = PrecisionMode(torch.float64)
        mode.drawn_in = self._drawn_in
        with direction.at(distance):
            return ran(self._forward, self._parts, self._borrowed, mode)

    def _velocity(self, leaf: torch.Tensor, off: Floats) -> torch.Tensor:
        numbers = real_view(leaf.detach().resolve_conj())
        size = float(numbers.square().mean().sqrt()) if numbers.numel() else 0.0
        u, little = torch.rand((2, *numbers.shape), generator=self._generator, dtype=torch.float64, device="cpu")
        towards = torch.from_numpy(np.sign(off)).reshape(numbers.shape)
        velocity: torch.Tensor = (size or 1.0) * (towards * (0.5 + u) + 0.2 * (little - 0.5))
        return velocity.to(numbers)


def _anew(span: _Span, tolerance: float) -> Judged:
    """The verdict by the nearest subgradient, the entries that it makes right marked as kinks."""
    if not (span.judged.is_wrong and span.has_kinks):
        return span.judged
    each = span.judged.compared
    moved = span.nearest - each.right
    found = judged(replace(each, right=span.nearest, rounded=[run + moved for run in each.rounded]), tolerance)
    results = found.trial.results
    with np.errstate(all="ignore"):
        at_kinks = (np.abs(moved) > results.error_bar) & (results.outcome != Outcome.MISMATCH)
    results = replace(
        results,
        outcome=np.where(at_kinks, Outcome.KINK, results.outcome).astype(np.int8),
        left=np.where(at_kinks, span.low, results.left),
        right=np.where(at_kinks, span.high, results.right),
    )
    return replace(found, trial=replace(found.trial, results=results))


def _left_open(each: Judged) -> Judged:
    """The verdict with its wrong entries undecided: more numbers tie than were tried."""
    results = each.trial.results
    outcome = np.where(results.outcome == Outcome.MISMATCH, Outcome.UNDECIDED, results.outcome).astype(np.int8)
    return replace(each, trial=replace(each.trial, results=replace(results, outcome=outcome)))
