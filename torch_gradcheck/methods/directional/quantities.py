"""Whether a direction crosses a kink of any operation: every quantity between θ and J is differenced along it.

J may have one slope along a direction although its parts have two, as relu(x) − relu(−x) = x has at x = 0. Autograd
chooses a slope for each of the parts, and what it adds up to need then be no slope of J.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.directional.motions import Direction
from torch_gradcheck.objective.objective import Objective

DISTANCE = 2e-7
"""How far points beside θ are from it, relative to the size of its entries: pieces of J that meet at θ meet there."""

STEP = DISTANCE / 64
"""Relative step by which quantities are differenced: beside θ it stays on one piece."""

ALIKE = 0.02
"""Two slopes of a quantity are the same where they differ by at most 2 % of themselves, ..."""

CURVED = 1e-4
"""... or by this share of the largest slope in the tensor: 500 times what a curvature of 1 makes of `DISTANCE`, ..."""

ROUNDINGS = 64.0
"""... or by this many machine epsilons of the largest number in the tensor, divided by the step, ..."""

CLOSER = 8.0
"""... or where it halves twice by steps and distances that are this many times smaller: then it is curvature."""

Pair = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Slopes of all quantities, on two sides of θ or at two points."""


class Quantities:
    """The quantities between θ and J, by the record of J, along directions.

    Args:
        record: of J.
        directions: moves θ.
        objective: J, told of every evaluation of the record.
    """

    def __init__(self, record: TracedEngine, directions: Directions, objective: Objective) -> None:
        self._record, self._directions, self._objective = record, directions, objective

    def have_one_slope(self, direction: Direction, reach: float, points: Sequence[Direction] = ()) -> bool:
        """Whether no operation is at a kink that the direction crosses at θ, or at a point beside it.

        Args:
            direction: in θ.
            reach: the step along it over which quantities may well vary.
            points: directions that a step of 1 takes to points beside θ, where other pieces of J meet.

        Raises:
            Untraceable: the record cannot be run again.
        """
        here, step = self._at(), STEP * reach

        def on_both_sides(scale: float) -> Pair:
            ahead, behind = self._at((direction, scale * step)), self._at((direction, -scale * step))
            return _slopes(here, ahead, scale * step), _slopes(behind, here, scale * step)

        @cache
        def slopes_here(scale: float) -> list[Tensor]:
            return self._slopes(direction, scale * step)

        def there_and_here(point: Direction, scale: float) -> Pair:
            return self._slopes(direction, scale * step, (point, scale)), slopes_here(scale)

        alike = _are_alike(on_both_sides, here, step)
        for point in points:
            alike = alike and _are_alike(partial(there_and_here, point), here, step)
        return alike

    def _slopes(self, direction: Direction, step: float, *point: tuple[Direction, float]) -> list[Tensor]:
        return _slopes(self._at(*point, (direction, -step)), self._at(*point, (direction, step)), 2 * step)

    def _at(self, *moves: tuple[Direction, float]) -> list[Tensor]:
        self._objective.count(1)
        with self._directions.at(*moves):
            return self._record.quantities()


def _slopes(before: Sequence[Tensor], after: Sequence[Tensor], width: float) -> list[Tensor]:
    """The difference quotients of quantities."""
    # ∞ − ∞, of a mask, is no motion.
    return [torch.where(b == a, torch.zeros_like(b), (a - b) / width) for b, a in zip(before, after, strict=True)]


def _are_alike(slopes: Callable[[float], Pair], values: Sequence[Tensor], step: float) -> bool:
    """Whether two lists of slopes are the same, up to curvature and to the roundoff of the values they are of.

    Args:
        slopes: gives both, for steps and distances scaled by a factor.
        values: the quantities.
        step: of the differences, at a scale of 1.
    """
    apart = _apart(slopes(1.0), values, step)
    if apart is None or not any(gap.any() for gap in apart):
        return apart is not None
    closer = _apart(slopes(1 / CLOSER), values, step / CLOSER)
    return closer is not None and not any(
        bool((near > far / 4).any()) for near, far in zip(closer, apart, strict=True) if near.any()
    )


def _apart(pair: Pair, values: Sequence[Tensor], step: float) -> list[Tensor] | None:
    """How far two slopes are apart, 0 where they are the same; None where a quantity is no number."""
    gaps = []
    for one, other, value in zip(*pair, values, strict=True):
        gap = (one - other).abs()
        if torch.isnan(gap).any():
            return None
        gaps.append(torch.where(gap <= _allowed(one, other, value, step), torch.zeros_like(gap), gap))
    return gaps


def _allowed(one: Tensor, other: Tensor, value: Tensor, step: float) -> Tensor:
    larger = torch.maximum(one.abs(), other.abs())
    if not one.numel():
        return larger
    size = torch.nan_to_num(value.abs(), nan=0.0, posinf=0.0).max()
    roundoff = ROUNDINGS * torch.finfo(torch.float64).eps * size / step
    return ALIKE * larger + CURVED * larger.max() + roundoff
