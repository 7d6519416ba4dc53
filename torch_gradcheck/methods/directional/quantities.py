"""Whether a direction crosses a kink of any operation: every quantity between θ and J is differenced along it.

J may have one slope along a direction although its parts have two, as relu(x) − relu(−x) = x has at x = 0. Autograd
chooses a slope for each of the parts, and what it adds up to need then be no slope of J.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.methods.directional.directions import Direction, Directions
from torch_gradcheck.objective.objective import Objective

DISTANCE = 2e-7
"""How far points beside θ are from it, relative to the size of its tensors: pieces of J that meet at θ meet there."""

STEP = DISTANCE / 64
"""Relative step by which quantities are differenced: beside θ it stays on one piece."""

ALIKE = 0.02
"""Two slopes of a quantity are the same where they differ by at most 2 % of themselves, ..."""

CURVED = 1e-4
"""... or by this share of the largest slope in the tensor: 500 times what a curvature of 1 makes of `DISTANCE`, ..."""

ROUNDINGS = 64.0
"""... or by this many machine epsilons of the largest number in the tensor, divided by the step."""


class Quantities:
    """The quantities between θ and J, by the record of J, along directions.

    Args:
        record: of J.
        directions: moves θ.
        objective: J, told of every evaluation of the record.
    """

    def __init__(self, record: TracedEngine, directions: Directions, objective: Objective) -> None:
        self._record, self._directions, self._objective = record, directions, objective

    def have_one_slope(self, direction: Direction, points: Sequence[Direction] = ()) -> bool:
        """Whether no operation is at a kink that the direction crosses at θ, or at a point beside it.

        Args:
            direction: in θ.
            points: directions that a step of 1 takes to points beside θ, where other pieces of J meet.

        Raises:
            Untraceable: the record cannot be run again.
        """
        step = STEP * self._directions.reach(direction)
        here, ahead, behind = self._at(), self._at((direction, step)), self._at((direction, -step))
        if not _alike(_slopes(here, ahead, step), _slopes(behind, here, step), here, step):
            return False
        at_theta = _slopes(behind, ahead, 2 * step)
        for point in points:
            ahead, behind = self._at((point, 1.0), (direction, step)), self._at((point, 1.0), (direction, -step))
            if not _alike(at_theta, _slopes(behind, ahead, 2 * step), here, step):
                return False
        return True

    def _at(self, *moves: tuple[Direction, float]) -> list[Tensor]:
        self._objective.count(1)
        with self._directions.at(*moves):
            return self._record.quantities()


def _slopes(before: Sequence[Tensor], after: Sequence[Tensor], width: float) -> list[Tensor]:
    """The difference quotients of quantities; NaN where these have not the same shapes at both ends."""
    return [_slope(b, a, width) for b, a in zip(before, after, strict=True)]


def _slope(before: Tensor, after: Tensor, width: float) -> Tensor:
    if before.shape != after.shape:
        return torch.full_like(before, torch.nan)
    # ∞ − ∞, of a mask, is no motion.
    return torch.where(before == after, torch.zeros_like(before), (after - before) / width)


def _alike(one: Sequence[Tensor], other: Sequence[Tensor], values: Sequence[Tensor], step: float) -> bool:
    """Whether two lists of slopes are the same, up to curvature and to the roundoff of the values they are of."""
    return all(_are_alike(*each, step) for each in zip(one, other, values, strict=True))


def _are_alike(one: Tensor, other: Tensor, value: Tensor, step: float) -> bool:
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    larger = torch.maximum(one.abs(), other.abs())
    size = torch.nan_to_num(value.abs(), nan=0.0, posinf=0.0).max()
    roundoff = ROUNDINGS * torch.finfo(torch.float64).eps * size / step
    allowed = ALIKE * larger + CURVED * larger.max() + roundoff
    return bool(((one - other).abs() <= allowed).all())
