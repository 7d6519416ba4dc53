"""Verifies a gradient of the whole θ along random directions, and finds the tensors whose gradient J contradicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.methods.directional.directions import Directions, slope
from torch_gradcheck.methods.projected.detection_power import detectable
from torch_gradcheck.methods.projected.scales import capped, scales
from torch_gradcheck.methods.projected.slopes import (
    TOP_BY_QUIET,
    Predicted,
    SlopeCheck,
    checks_at_best_step,
    checks_at_step,
    quiet_step,
    smallest_visible_change,
)
from torch_gradcheck.verdicts.trial import Proof

DIRECTIONS = 8
"""How many random directions must agree with a gradient to verify it, besides the one or two that find the step."""

SPARE = 3
"""Up to 3 more directions may disagree, as those that cross a kink do.

The detection power includes the number of ways to choose the agreeing ones.
"""

FINDING_STEP, SEPARATING = range(100, 102), range(102, 104)
"""Numbers of the random directions that find the step, and of those that separate right tensors from wrong ones."""

LARGEST_MOVE = 0.03
"""A step moves no tensor by more than 3 % of its own size."""

CLOSER = 4.0
"""A direction that disagrees is checked again at a step this many times smaller."""

ROUNDS = 4
"""At most 4 rounds; each verifies the tensors that moved too little in the round before, as a group of their own."""

SEPARATIONS = 3
"""How many times at most the tensors that disagree are removed from a group."""


Scale = Mapping[int, float]
"""By position in θ, how far a step of 1 along a direction moves a coordinate of that tensor."""


@dataclass(frozen=True)
class Certificate:
    """The certificate of one tensor's verified gradient.

    Attributes:
        proof: what the directions prove of it.
        step: of the differences along the directions.
        scale: how far a step of 1 moves a coordinate of the tensor.
    """

    proof: Proof
    step: float
    scale: float


class SlopeChecks(NamedTuple):
    """A gradient's slopes along several random directions, checked against J's.

    Attributes:
        step: of the differences.
        checks: one a direction.
        allowed: the largest residual of a direction that agrees.
    """

    step: float
    checks: list[SlopeCheck]
    allowed: float

    @property
    def needed(self) -> int:
        """How many more directions are looked at in any case; 0 where it is settled whether enough of them agree."""
        agreeing = len(self.agreeing)
        return max(0, min(DIRECTIONS - agreeing, SPARE + 1 - (len(self.checks) - agreeing)))

    @property
    def agreeing(self) -> list[SlopeCheck]:
        """Checks of the directions that agree."""
        return [check for check in self.checks if check.residual <= self.allowed]


class Verifier:
    """Verifies gradients along random directions.

    Args:
        directions: makes directions and evaluates J along them.
        noise: of J.
        tolerance: the largest relative error that passes.
        eps: how far to move θ, relative to its size; None to choose.
    """

    def __init__(self, directions: Directions, noise: Noise, tolerance: float, eps: float | None) -> None:
        self._directions, self._noise, self._tolerance, self._eps = directions, noise, tolerance, eps
        self._sizes = directions.sizes

    def certify(
        self, gradients: Mapping[int, Floats], positions: Sequence[int]
    ) -> tuple[dict[int, Certificate], list[int]]:
        """Certificates of the tensors whose gradient J agrees with, by position, and the positions of the others.

        Args:
            gradients: by position, shape (coordinates,), finite; more than `positions` is allowed.
            positions: of the tensors to verify.
        """
        certificates: dict[int, Certificate] = {}
        refused: list[int] = []
        group = list(positions)
        for _ in range(ROUNDS):
            scale = self._scales(gradients, group)
            found, failed = self._certified_together(gradients, scale)
            certificates |= found
            refused += failed
            moved_little = self._moved_too_little(gradients, found)
            if not moved_little or len(moved_little) == len(group):
                break
            group = moved_little
        return certificates, refused

    def alone(self, gradients: Mapping[int, Floats], position: int) -> tuple[float, float]:
        """The scale of this tensor in a direction of its own, and a step that suits."""
        scale = self._scales(gradients, [position])
        return scale[position], self._top(scale) / TOP_BY_QUIET

    def _certified_together(
        self, gradients: Mapping[int, Floats], scale: Mapping[int, float]
    ) -> tuple[dict[int, Certificate], list[int]]:
        """Certificates of one group of tensors, and the positions of those that disagree on their own."""
        refused: list[int] = []
        for _ in range(SEPARATIONS):
            checks = self._checks(gradients, scale)
            if len(checks.agreeing) >= DIRECTIONS:
                break
            failed = self._disagreeing(gradients, scale, checks.step, list(scale))
            refused += failed
            scale = {position: scale[position] for position in scale if position not in failed}
            if not failed or not scale:
                break
        return {position: _certificate(checks, scale[position]) for position in scale}, refused

    def _checks(self, gradients: Mapping[int, Floats], scale: Scale) -> SlopeChecks:
        """Checks along random directions, until `DIRECTIONS` agree or more than `SPARE` do not."""
        for number in FINDING_STEP:
            (found,) = self._checked_at_any_step(gradients, [scale], number)
            if found.agrees(self._tolerance):
                break
        else:
            return SlopeChecks(found.step, [found], self._tolerance)
        quiet = found.threshold <= self._tolerance
        checked = SlopeChecks(found.step, [], self._tolerance if quiet else max(self._tolerance, found.error_bar))
        while needed := checked.needed:
            at_once = needed if self._directions.at_a_time > 1 else 1
            numbers = range(len(checked.checks), len(checked.checks) + at_once)
            checked.checks.extend(self._checked(gradients, [(number, scale) for number in numbers], checked.step))
        return checked

    def _checked(
        self, gradients: Mapping[int, Floats], asked: Sequence[tuple[int, Scale]], step: float
    ) -> list[SlopeCheck]:
        """Checks along random directions at `step` or, where one disagrees, at a smaller step if that is better.

        Args:
            gradients: by position.
            asked: number and scales of each direction.
            step: of the differences.
        """
        checks = checks_at_step(self._predicted(gradients, asked), step, self._noise)
        off = [k for k, check in enumerate(checks) if not check.agrees(self._tolerance)]
        if self._eps is None and off:
            again = self._predicted(gradients, [asked[k] for k in off])
            for k, closer in zip(off, checks_at_step(again, step / CLOSER, self._noise), strict=True):
                checks[k] = min(checks[k], closer, key=lambda either: either.threshold)._replace(steps=2)
        return checks

    def _checked_at_any_step(
        self, gradients: Mapping[int, Floats], groups: Sequence[Scale], number: int
    ) -> list[SlopeCheck]:
        """Checks along random direction `number`, at the best of several steps or at the one that `eps` asks for."""
        if self._eps is not None:
            alone = [self._predicted(gradients, [(number, scale)]) for scale in groups]
            steps = [self._eps * self._reach(scale) for scale in groups]
            return [checks_at_step(*each, self._noise)[0] for each in zip(alone, steps, strict=True)]
        predicted = self._predicted(gradients, [(number, scale) for scale in groups])
        tops = np.array([self._top(scale) for scale in groups])
        return checks_at_best_step(predicted, tops, self._noise, self._tolerance)

    def _predicted(self, gradients: Mapping[int, Floats], asked: Sequence[tuple[int, Scale]]) -> Predicted:
        """J along random directions, and the slopes that the gradients predict there."""
        directions = [self._directions.random(number, scale) for number, scale in asked]
        slopes = np.zeros(len(directions))

        def visit(k: int) -> None:
            slopes[k] = slope(directions[k], gradients)

        return Predicted(self._directions.sampler(directions, visit=visit), slopes)

    def _disagreeing(
        self, gradients: Mapping[int, Floats], scale: Scale, step: float, positions: list[int]
    ) -> list[int]:
        """The tensors that disagree on their own, found by halving `positions`, which disagree together."""
        found: list[int] = []
        groups = [positions]
        while groups:
            found += [group[0] for group in groups if len(group) == 1]
            parts = [group for group in groups if len(group) > 1]
            halves = [half for group in parts for half in (group[: len(group) // 2], group[len(group) // 2 :])]
            agree = self._agree(gradients, [{position: scale[position] for position in half} for half in halves], step)
            groups = [half for half, agrees in zip(halves, agree, strict=True) if not agrees]
        return [position for position in positions if position in found]

    def _agree(self, gradients: Mapping[int, Floats], groups: Sequence[Scale], step: float) -> list[bool]:
        """Which groups of tensors agree along the directions that separate right ones from wrong ones."""
        agree = list(range(len(groups)))
        for number in SEPARATING:
            checks = self._checked(gradients, [(number, groups[k]) for k in agree], step) if agree else []
            off = [k for k, check in zip(agree, checks, strict=True) if not check.agrees(self._tolerance)]
            closer = self._checked_at_any_step(gradients, [groups[k] for k in off], number) if off else []
            wrong = {k for k, check in zip(off, closer, strict=True) if not check.agrees(self._tolerance)}
            agree = [k for k in agree if k not in wrong]
        return [k in agree for k in range(len(groups))]

    def _scales(self, gradients: Mapping[int, Floats], positions: Sequence[int]) -> dict[int, float]:
        lengths = np.array([np.linalg.norm(gradients[position]) for position in positions])
        sizes = np.array([self._sizes[position] for position in positions])
        return dict(zip(positions, scales(lengths, sizes).tolist(), strict=True))

    def _top(self, scale: Mapping[int, float]) -> float:
        """The largest step to try: 64 quiet steps, but no more than moves a tensor by `LARGEST_MOVE`."""
        return min(TOP_BY_QUIET * quiet_step(self._noise, self._tolerance), LARGEST_MOVE * self._reach(scale))

    def _reach(self, scale: Mapping[int, float]) -> float:
        """The smallest step that moves some tensor by its own size."""
        return min(self._sizes[position] / scale[position] for position in scale)

    def _moved_too_little(self, gradients: Mapping[int, Floats], found: Mapping[int, Certificate]) -> list[int]:
        """Tensors judged more coarsely than the tolerance, which a larger scale would judge to within it."""
        needed = smallest_visible_change(self._noise) / self._tolerance
        little = []
        for position, certificate in found.items():
            length = float(np.linalg.norm(gradients[position]))
            judged = certificate.proof.resolution <= self._tolerance * length
            held_back = capped(np.array([certificate.scale]), np.array([length]))[0] > 1
            if held_back and not judged and length * LARGEST_MOVE * self._sizes[position] > needed:
                little.append(position)
        return little


def _certificate(checked: SlopeChecks, scale: float) -> Certificate:
    """The certificate of a tensor of this scale: from the agreeing directions or, if these are too few, from all."""
    counted = checked.agreeing if len(checked.agreeing) >= DIRECTIONS else checked.checks
    threshold = max(check.threshold for check in counted)
    steps = float(np.exp(np.mean(np.log([check.steps for check in counted]))))
    choices = comb(len(checked.checks), len(counted)) ** (1 / len(counted))
    proof = Proof(
        directions=len(counted),
        resolution=threshold / scale,
        detectable=detectable(threshold, len(counted), steps * choices) / scale,
    )
    return Certificate(proof, checked.step, scale)
