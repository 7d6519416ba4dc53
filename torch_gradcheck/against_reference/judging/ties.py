"""Candidates at kinks: where numbers tie, as relu at 0, each subgradient is right, and the reference takes one of them.

Inputs of few bits collide: half of a tensor of bfloat16 may be exactly 0, the two largest numbers of a row equal. Then
J has a kink, and which side's slope a right backward gives is a convention. The reference is run in float64 beside
its inputs, moved by far less than they were rounded: what its gradient is there, on either side of a kink, spans what
may be right at the kink. Where J is smooth it stands still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np
import torch

from torch_gradcheck.against_reference.judging.compared import compared
from torch_gradcheck.against_reference.judging.joint_sums import FEW, JointSums
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.judging.spans import Span, anew, left_open
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.runs.run import Run, ran
from torch_gradcheck.against_reference.runs.sides import Candidate, lent
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.borrowing.loan import Borrowed, Start
from torch_gradcheck.objective.perturbation import Direction, real_view
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.request import Request

DISTANCE = 1e-10
"""How far inputs are moved, relative to their root mean square: ties break, and float64 still resolves the move."""

ROUNDS = 24
"""The most pairs of points beside the inputs. Of k tied numbers each pair has one win, so that a gradient shared by all
takes k − 1."""

LITTLE = 0.2
"""How far entries move that are to be hardly moved, in multiples of others."""

PATIENCE, LEAST_PATIENCE = 24, 6
"""Where so many pairs one after the other explain nothing further, what is left is wrong: fewer of several entries, of
which one at least would have been explained by now."""


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
        beside, history = _Beside(reference, candidate, borrowed, request.seed), _History()
        spans, sums = [Span.of(each) for each in verdicts], JointSums(verdicts, request.beyond_rounding)
        for k in range(ROUNDS + PATIENCE):
            moves = list(Moves)[k % len(Moves)]
            runs = beside.pair([np.where(span.is_beyond, span.off, 0.0) for span in spans], moves)
            one, other = [[each.right for each in compared(candidate, run, [])] for run in runs]
            spans = [span.taking_in(one[at], other[at], moves.is_opposite) for at, span in enumerate(spans)]
            sums.take_in(one)
            sums.take_in(other)
            found = [anew(span, request.beyond_rounding) for span in spans]
            is_open = [span.has_kinks and span.is_left(each) for each, span in zip(found, spans, strict=True)]
            jointly = sums.contradicted(spans) if np.any([span.has_kinks for span in spans]) else []
            together = sum([int(np.sum(flags)) for flags in jointly])
            if not (any(is_open) or together):
                return found
            alone = sum([int(np.sum(span.is_beyond)) for span in spans])
            history.take_in(alone, together)
            if history.is_final:
                return _together(spans, jointly, request) if together else _exchanged(found, sums.agree(spans))
            if k >= ROUNDS and alone and not history.idle:
                break
    marked = _together(spans, jointly, request)
    return [
        left_open(each) if tied or flags.any() else each
        for each, tied, flags in zip(marked, is_open, jointly, strict=True)
    ]


@dataclass
class _History:
    """How long nothing more has been explained.

    Attributes:
        fewest: the least so far that was left to explain; None before the first pair.
        idle: how many pairs ago it became that few.
        left: how many entries are left, alone and together.
    """

    fewest: int | None = None
    idle: int = 0
    left: int = 0

    def take_in(self, alone: int, together: int) -> None:
        """How many entries a further pair leaves, each by itself and together with others."""
        now, self.left = alone + (together > 0), alone + together
        self.idle = 0 if self.fewest is not None and now < self.fewest else self.idle + 1
        self.fewest = now if self.fewest is None else min(now, self.fewest)

    @property
    def is_final(self) -> bool:
        """Whether what is left is wrong."""
        patience = PATIENCE if self.left <= FEW else max(PATIENCE // self.left, LEAST_PATIENCE)
        return self.idle > patience


def _together(spans: Sequence[Span], jointly: Sequence[Flags], request: Request) -> list[Judged]:
    """The verdicts where entries contradict the reference together."""
    marked = [replace(span, jointly=flags) for span, flags in zip(spans, jointly, strict=True)]
    return [anew(span, request.beyond_rounding) for span in marked]


def _exchanged(found: Sequence[Judged], agree: Sequence[bool]) -> list[Judged]:
    """The verdicts, those left open whose wrong entries may have been chosen at ties that were not seen."""
    return [left_open(each) if each.is_wrong and at_ties else each for each, at_ties in zip(found, agree, strict=True)]


class Moves(Enum):
    """How inputs are moved that the reference is run beside."""

    TOWARDS = auto()
    """Entries whose gradient is off move by its sign, others a little at random. A maximum of tied numbers is then
    taken where the candidate took it: on the way there, or, of one whose gradient is negative, on the way back."""

    AT_RANDOM = auto()
    """All move at random."""

    AROUND = auto()
    """Entries whose gradient is off hardly move, and others at random: a median is then taken where the candidate took
    it."""

    @property
    def is_opposite(self) -> bool:
        """Whether the two points of a pair are on both sides of the inputs, and not anywhere."""
        return self is Moves.TOWARDS


class _Beside:
    """Runs of a lent reference beside its inputs, on both sides of them."""

    def __init__(self, reference: Computation, candidate: Candidate, borrowed: Borrowed, seed: int) -> None:
        theta = theta_of(reference.model, (), (), reference.loss.variables)
        self._parts = parts_of_gradients(candidate.theta, theta, reference.loss)
        self._leaves = [leaf for leaf, *_ in self._parts]
        self._forward, self._borrowed = reference.at(torch.float64), borrowed
        self._drawn_in = candidate.drawn_in
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def pair(self, off: Sequence[Floats], moves: Moves) -> list[Run]:
        """Two runs, at inputs moved along a direction, and against it or along another one.

        Args:
            off: how far each gradient of the candidate is from what is right as far as is known; 0 where rounding
                explains it.
            moves: how.
        """
        of_gradients = off[: len(self._leaves)]  # those of outputs are behind them
        one = self._direction(of_gradients, moves)
        if moves.is_opposite:
            return [self._ran(one, DISTANCE), self._ran(one, -DISTANCE)]
        return [self._ran(one, DISTANCE), self._ran(self._direction(of_gradients, moves), DISTANCE)]

    def _direction(self, off: Sequence[Floats], moves: Moves) -> Direction:
        velocities = [self._velocity(leaf, each, moves) for leaf, each in zip(self._leaves, off, strict=True)]
        return Direction(self._leaves, velocities)

    def _ran(self, direction: Direction, distance: float) -> Run:
        mode = PrecisionMode(torch.float64)
        mode.drawn_in = self._drawn_in
        with direction.at(distance):
            return ran(self._forward, self._parts, self._borrowed, mode)

    def _velocity(self, leaf: torch.Tensor, off: Floats, moves: Moves) -> torch.Tensor:
        numbers = real_view(leaf.detach().resolve_conj())
        size = float(numbers.square().mean().sqrt()) if numbers.numel() else 0.0
        u, noise = torch.rand((2, *numbers.shape), generator=self._generator, dtype=torch.float64, device="cpu")
        signs, noise = torch.from_numpy(np.sign(off)).reshape(numbers.shape), noise - 0.5
        if moves is Moves.TOWARDS:
            noise = signs * (0.5 + u) + LITTLE * noise
        elif moves is Moves.AROUND:
            noise = noise.where(signs == 0, LITTLE * noise)
        velocity: torch.Tensor = (size or 1.0) * noise
        return velocity.to(numbers)
