"""Candidates at kinks: where numbers tie, as relu at 0, each subgradient is right, and the reference takes one of them.

Inputs of few bits collide: half of a tensor of bfloat16 may be exactly 0, the two largest numbers of a row equal. Then
J has a kink, and which side's slope a right backward gives is a convention. The reference is run in float64 beside
its inputs, moved by far less than they were rounded: what its gradient is there, on either side of a kink, spans what
may be right at the kink. Where J is smooth it stands still.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from torch_gradcheck.against_reference.judging.compared import compared
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.judging.spans import Span, anew, left_open
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.runs.run import Run, ran
from torch_gradcheck.against_reference.runs.sides import Candidate, lent
from torch_gradcheck.arrays import Floats
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

PATIENCE = 5
"""Where so many pairs one after the other explain no further entry, what is left is wrong."""


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
        spans, beyond, idle = [Span.of(each) for each in verdicts], [], 0
        for k in range(ROUNDS):
            for run in beside.pair([span.off for span in spans], towards=k % 2 == 0):
                numbers = [each.right for each in compared(candidate, run, [])]
                spans = [span.taking_in(right) for span, right in zip(spans, numbers, strict=True)]
            found = [anew(span, request.beyond_rounding) for span in spans]
            beyond.append(sum([span.beyond for span in spans]))
            idle = 0 if k and beyond[-1] < min(beyond[:-1]) else idle + 1
            is_open = [each.is_wrong and span.has_kinks for each, span in zip(found, spans, strict=True)]
            if not any(is_open) or idle > PATIENCE:
                return found
    return [left_open(each) if tied else each for each, tied in zip(found, is_open, strict=True)]


class _Beside:
    """Runs of a lent reference beside its inputs, on both sides of them."""

    def __init__(self, reference: Computation, candidate: Candidate, borrowed: Borrowed, seed: int) -> None:
        theta = theta_of(reference.model, (), (), reference.loss.variables)
        self._parts = parts_of_gradients(candidate.theta, theta, reference.loss)
        self._leaves = [leaf for leaf, *_ in self._parts]
        self._forward, self._borrowed = reference.at(torch.float64), borrowed
        self._drawn_in = candidate.drawn_in
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def pair(self, off: Sequence[Floats], towards: bool) -> list[Run]:
        """Two runs, at inputs moved along a direction and against it.

        Args:
            off: how far each gradient of the candidate is from what is right as far as is known.
            towards: entries whose gradient is off move by its sign, so that a maximum of tied numbers is taken where
                the candidate took it, wherever the gradient of it is positive, and where it is negative on the way
                back. Others move a little at random. False: all move at random.
        """
        of_gradients = off[: len(self._leaves)]  # those of outputs are behind them
        signs = [np.sign(errors) if towards else np.zeros_like(errors) for errors in of_gradients]
        velocities = [self._velocity(leaf, each) for leaf, each in zip(self._leaves, signs, strict=True)]
        direction = Direction(self._leaves, velocities)
        return [self._ran(direction, DISTANCE), self._ran(direction, -DISTANCE)]

    def _ran(self, direction: Direction, distance: float) -> Run:
        mode = PrecisionMode(torch.float64)
        mode.drawn_in = self._drawn_in
        with direction.at(distance):
            return ran(self._forward, self._parts, self._borrowed, mode)

    def _velocity(self, leaf: torch.Tensor, signs: Floats) -> torch.Tensor:
        numbers = real_view(leaf.detach().resolve_conj())
        size = float(numbers.square().mean().sqrt()) if numbers.numel() else 0.0
        u, little = torch.rand((2, *numbers.shape), generator=self._generator, dtype=torch.float64, device="cpu")
        towards = torch.from_numpy(signs).reshape(numbers.shape)
        velocity: torch.Tensor = (size or 1.0) * (towards * (0.5 + u) + 0.2 * (little - 0.5))
        return velocity.to(numbers)
