"""Verifies a gradient of the whole θ along random directions, and finds the tensors that J does not bear out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.methods.projected.detection_power import detectable
from torch_gradcheck.methods.projected.directions import Directions, slope
from torch_gradcheck.methods.projected.scales import capped, scales
from torch_gradcheck.methods.projected.slopes import (
    ABOVE,
    SlopeCheck,
    check_at_best_step,
    check_at_step,
    quiet_step,
    resolved_from,
)
from torch_gradcheck.verdicts.trial import Proof

DIRECTIONS = 8
"""How many random directions verify a gradient, besides the one or two that find the step."""

SPARE = 3
"""How many more may disagree, since they happen to cross a kink: odds count the ways to choose those that agree."""

SEARCHES, SEPARATING = range(100, 102), range(102, 104)
"""Numbers of the directions that find the step, and of those that tell tensors apart."""

HORIZON = 0.03
"""The largest part of its own size that a tensor is moved by."""

CLOSER = 4.0
"""How many times smaller the step is at which a direction that disagrees is looked at again."""

ROUNDS = 4
"""How often tensors that moved too little to be judged are looked at again among themselves."""

SEPARATIONS = 3
"""How often tensors that disagree are looked for."""


@dataclass(frozen=True)
class Certificate:
    """One tensor's gradient, verified.

    Attributes:
        proof: what that proves.
        step: the step along the directions.
        scale: how far a step of 1 moves a coordinate of it.
    """

    proof: Proof
    step: float
    scale: float


class Looks(NamedTuple):
    """A gradient along several directions.

    Attributes:
        step: of the differences.
        seen: direction by direction.
        allowed: what may lie between J's slope and the gradient's.
    """

    step: float
    seen: list[SlopeCheck]
    allowed: float

    @property
    def agreeing(self) -> list[SlopeCheck]:
        """Those along which they are one."""
        return [seen for seen in self.seen if seen.residual <= self.allowed]


class Verifier:
    """Verifies gradients along directions.

    Args:
        directions: makes directions and evaluates J along them.
        noise: of J.
        tolerance: the largest relative error that passes.
        eps: how far to move θ, relative to its size; None chooses.
    """

    def __init__(self, directions: Directions, noise: Noise, tolerance: float, eps: float | None) -> None:
        self._directions, self._noise, self._tolerance, self._eps = directions, noise, tolerance, eps
        self._sizes = directions.sizes

    def certify(
        self, gradients: Mapping[int, Floats], positions: Sequence[int]
    ) -> tuple[dict[int, Certificate], list[int]]:
        """Certificates of the tensors whose gradient J bears out, by position, and the positions of the others."""
        certificates: dict[int, Certificate] = {}
        refused: list[int] = []
        waiting = list(positions)
        for _ in range(ROUNDS):
            scale = self._scales(gradients, waiting)
            found, failed = self._group(gradients, scale)
            certificates |= found
            refused += failed
            moved_little = self._moved_too_little(gradients, found)
            if not moved_little or len(moved_little) == len(waiting):
                break
            waiting = moved_little
        return certificates, refused

    def alone(self, gradients: Mapping[int, Floats], position: int) -> tuple[float, float]:
        """How far a step of 1 would move a coordinate of this tensor alone, and a step that suits."""
        scale = self._scales(gradients, [position])
        return scale[position], self._top(scale) / ABOVE

    def _group(
        self, gradients: Mapping[int, Floats], scale: Mapping[int, float]
    ) -> tuple[dict[int, Certificate], list[int]]:
        """Certificates for one group at its scales; without those tensors that disagree on their own."""
        refused: list[int] = []
        for _ in range(SEPARATIONS):
            looks = self._looks(gradients, scale)
            if len(looks.agreeing) >= DIRECTIONS:
                break
            failed = self._separated(gradients, scale, looks.step, list(scale))
            refused += failed
            scale = {position: scale[position] for position in scale if position not in failed}
            if not failed or not scale:
                break
        return {position: _certificate(looks, scale[position]) for position in scale}, refused

    def _looks(self, gradients: Mapping[int, Floats], scale: Mapping[int, float]) -> Looks:
        """Along random directions until enough agree or too many do not."""
        for number in SEARCHES:
            found = self._search(gradients, scale, number)
            if found.agrees(self._tolerance):
                break
        else:
            return Looks(found.step, [found], self._tolerance)
        quiet = found.threshold <= self._tolerance
        looks = Looks(found.step, [], self._tolerance if quiet else max(self._tolerance, found.bar))
        while len(looks.agreeing) < DIRECTIONS and len(looks.seen) - len(looks.agreeing) <= SPARE:
            looks.seen.append(self._look(gradients, scale, len(looks.seen), looks.step))
        return looks

    def _look(
        self, gradients: Mapping[int, Floats], scale: Mapping[int, float], number: int, step: float
    ) -> SlopeCheck:
        """At that step or, where it happens to cross a kink, at a smaller one."""
        direction = self._directions.random(number, scale)
        sampler, predicted = self._directions.sampler([direction]), slope(direction, gradients)
        seen = check_at_step(sampler, predicted, step, self._noise)
        if seen.agrees(self._tolerance) or self._eps is not None:
            return seen
        closer = check_at_step(sampler, predicted, step / CLOSER, self._noise)
        return min(seen, closer, key=lambda one: one.threshold)._replace(steps=2)

    def _search(self, gradients: Mapping[int, Floats], scale: Mapping[int, float], number: int) -> SlopeCheck:
        direction = self._directions.random(number, scale)
        sampler, predicted = self._directions.sampler([direction]), slope(direction, gradients)
        if self._eps is not None:
            return check_at_step(sampler, predicted, self._eps * self._reach(scale), self._noise)
        return check_at_best_step(sampler, predicted, self._top(scale), self._noise, self._tolerance)

    def _separated(
        self, gradients: Mapping[int, Floats], scale: Mapping[int, float], step: float, positions: list[int]
    ) -> list[int]:
        """Of these tensors, which do not agree as a whole, those that do not on their own."""
        if len(positions) == 1:
            return positions
        halves = positions[: len(positions) // 2], positions[len(positions) // 2 :]
        return [
            position
            for half in halves
            if not self._agree(gradients, {position: scale[position] for position in half}, step)
            for position in self._separated(gradients, scale, step, half)
        ]

    def _agree(self, gradients: Mapping[int, Floats], scale: Mapping[int, float], step: float) -> bool:
        return all(
            self._look(gradients, scale, number, step).agrees(self._tolerance)
            or self._search(gradients, scale, number).agrees(self._tolerance)
            for number in SEPARATING
        )

    def _scales(self, gradients: Mapping[int, Floats], positions: Sequence[int]) -> dict[int, float]:
        lengths = np.array([np.linalg.norm(gradients[position]) for position in positions])
        sizes = np.array([self._sizes[position] for position in positions])
        return dict(zip(positions, scales(lengths, sizes).tolist(), strict=True))

    def _top(self, scale: Mapping[int, float]) -> float:
        """The largest step to try."""
        return min(ABOVE * quiet_step(self._noise, self._tolerance), HORIZON * self._reach(scale))

    def _reach(self, scale: Mapping[int, float]) -> float:
        """The step that moves some tensor by its own size."""
        return min(self._sizes[position] / scale[position] for position in scale)

    def _moved_too_little(self, gradients: Mapping[int, Floats], found: Mapping[int, Certificate]) -> list[int]:
        """Tensors whose gradient is not judged to within the tolerance, and could be if they were moved further."""
        few = resolved_from(self._noise) / self._tolerance
        little = []
        for position, certificate in found.items():
            length = float(np.linalg.norm(gradients[position]))
            judged = certificate.proof.resolution <= self._tolerance * length
            held_back = capped(np.array([certificate.scale]), np.array([length]))[0] > 1
            if held_back and not judged and length * HORIZON * self._sizes[position] > few:
                little.append(position)
        return little


def _certificate(looks: Looks, scale: float) -> Certificate:
    """What the directions that agree prove of a tensor of this scale; too few of them prove what all of them do."""
    counted = looks.agreeing if len(looks.agreeing) >= DIRECTIONS else looks.seen
    threshold = max(seen.threshold for seen in counted)
    steps = float(np.exp(np.mean(np.log([seen.steps for seen in counted]))))
    choices = comb(len(looks.seen), len(counted)) ** (1 / len(counted))
    proof = Proof(
        directions=len(counted),
        resolution=threshold / scale,
        detectable=detectable(threshold, len(counted), steps * choices) / scale,
    )
    return Certificate(proof, looks.step, scale)
