"""Sums over entries that tie, which no choice between them changes: a gradient counted for each contradicts one.

Of two numbers that tie for a maximum either may be given its gradient, or both a share of it: together they get as
much. In general J has one slope along a direction in which numbers that tie move alike, and every generalised gradient
has it (Clarke, "Optimization and Nonsmooth Analysis", 1983). Which sums stay as they are is seen in the reference's
gradients beside the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.judging.parts import Cut, cuts_of
from torch_gradcheck.against_reference.judging.spans import SMOOTH, Span
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.gradients.analytic import analytic_gradient
from torch_gradcheck.reporting.facts import Role

MOST_JOINED = 6
"""Of more tensors than these no two are added up entry by entry."""

MOST_PARTS = 64
"""How many parts that are contradicted are marked, the smallest ones first."""

ROUNDED = 4.0
"""Units in the last place that each number of a sum may be off by, at least."""


class JointSums:
    """The sums of all gradients, over parts of each, of two entry by entry, and of all together.

    Args:
        verdicts: on every tensor, gradients first.
        tolerance: the relative error that passes.
    """

    def __init__(self, verdicts: Sequence[Judged], tolerance: float) -> None:
        gradients = [each for each in verdicts if each.compared.entry.role is not Role.OUTPUT]
        numbers, known = range(len(gradients)), [_directions(each) for each in gradients]
        chosen: list[tuple[int, ...]] = [(k,) for k in numbers]
        chosen += combinations(numbers, 2) if len(gradients) <= MOST_JOINED else ()
        chosen += [tuple(numbers)] if len(gradients) > 2 else []
        self._sums = [
            _Along({k: known[k][name] for k in each}, gradients, tolerance) for each in chosen for name in known[0]
        ]

    def take_in(self, numbers: Sequence[Floats]) -> None:
        """What the reference gives at one more point beside the inputs, by tensor."""
        for each in self._sums:
            each.take_in(numbers)

    def contradicted(self, spans: Sequence[Span]) -> list[Flags]:
        """The entries of each tensor whose sums no choice between slopes explains, of the smallest such parts.

        Parts in which a single entry is beyond its span are left to the judgement of that.
        """
        marked = [np.zeros(len(span.low), dtype=np.bool_) for span in spans]
        off = [span.is_beyond for span in spans]
        parts = sorted([part for each in self._sums for part in each.contradicted(off)], key=_size)
        for part in parts[:MOST_PARTS]:
            inside = part.inside
            if not np.any([np.any(marked[k] & flags) for k, flags in inside.items()]):
                for k, flags in inside.items():
                    marked[k] |= flags & spans[k].differs
        return marked


def _directions(each: Judged) -> dict[str, Floats]:
    """Ways in which numbers that tie move alike: equal ones, multiples of each other, and such up to their signs."""
    values = analytic_gradient(each.compared.entry, each.compared.entry.parameter, 0.0).values
    finite = np.where(np.isfinite(values), values, 0.0)
    return {"a constant": np.ones(len(values)), "itself": finite, "its sign": np.sign(finite)}


@dataclass(frozen=True)
class _Part:
    """One part of the tensors of a sum; `number` None is all of them."""

    sums: _Along
    cut: Cut | None
    number: int
    size: int

    @property
    def inside(self) -> dict[int, Flags]:
        """Its entries, by tensor."""
        return {k: self._inside(len(direction)) for k, direction in self.sums.directions.items()}

    def _inside(self, length: int) -> Flags:
        if self.cut is not None:
            return self.cut.part(self.number).inside(self.cut.shape)
        return np.ones(length, dtype=np.bool_) if self.number < 0 else np.arange(length) == self.number


def _size(part: _Part) -> int:
    return part.size


class _Along:
    """The sums of tensors along a direction through them: entry by entry and by parts where they have one shape.

    Args:
        directions: by the number of each tensor, shape (coordinates,).
        gradients: all tensors.
        tolerance: the relative error that passes.
    """

    def __init__(self, directions: dict[int, Floats], gradients: Sequence[Judged], tolerance: float) -> None:
        self.directions = directions
        shapes = {gradients[k].compared.shape for k in directions}
        self._cuts = cuts_of(next(iter(shapes))) if len(shapes) == 1 else []
        self._by_entry = len(directions) > 1 and len(shapes) == 1
        self._right = {k: gradients[k].compared.right for k in directions}
        with np.errstate(all="ignore"):
            candidate = {k: gradients[k].compared.candidate[0] for k in directions}
            self._error = self._sums({k: candidate[k] - right for k, right in self._right.items()})
            self._bar = self._sizes({k: _allowed(gradients[k], tolerance) for k in directions})
        self._spread, self._size = np.zeros(len(self._error)), np.zeros(len(self._error))

    def take_in(self, numbers: Sequence[Floats]) -> None:
        """What the reference gives at one more point."""
        with np.errstate(all="ignore"):
            moved = self._sums({k: numbers[k] - right for k, right in self._right.items()})
            self._spread = np.maximum(self._spread, np.abs(moved))
            self._size = np.maximum(self._size, self._sizes({k: numbers[k] for k in self.directions}))

    def contradicted(self, off: Sequence[Flags]) -> list[_Part]:
        """The parts whose sum stands still beside the inputs, and is another one for the candidate."""
        is_off = np.abs(self._error) > self._bar
        if not is_off.any():
            return []
        left = self._added({k: off[k].astype(np.float64) for k in self.directions}) > 0
        return [self._part(int(n)) for n in np.flatnonzero(is_off & ~left & (self._spread <= SMOOTH * self._size))]

    def _part(self, number: int) -> _Part:
        tensors = len(self.directions)
        if self._by_entry:
            length = len(next(iter(self.directions.values())))
            if number < length:
                return _Part(self, None, number, tensors)
            number -= length
        for cut in self._cuts:
            if number < len(cut.counts):
                return _Part(self, cut, number, tensors * int(cut.counts[number]))
            number -= len(cut.counts)
        return _Part(self, None, -1, sum([len(each) for each in self.directions.values()]))

    def _sums(self, values: dict[int, Floats]) -> Floats:
        return self._added({k: values[k] * direction for k, direction in self.directions.items()})

    def _sizes(self, values: dict[int, Floats]) -> Floats:
        return self._added({k: np.abs(values[k] * direction) for k, direction in self.directions.items()})

    def _added(self, values: dict[int, Floats]) -> Floats:
        """Over each part."""
        if not self._cuts:
            return np.array([sum([float(each.sum()) for each in values.values()])])
        added = np.sum(list(values.values()), axis=0)
        return np.concatenate([*([added] if self._by_entry else []), *[cut.sums(added) for cut in self._cuts]])


def _allowed(each: Judged, tolerance: float) -> Floats:
    """How far each entry of a right tensor may be off; where the reference gives another one more, as of that."""
    given, right, bar = each.compared.candidate[0], each.compared.right, each.bars.entry
    known = np.where(each.bars.overflowed, np.inf, bar)
    relative = float(np.linalg.norm(bar) / max(float(np.linalg.norm(right)), np.finfo(np.float64).tiny))
    larger = max(relative, ROUNDED * each.compared.epsilon) * np.abs(given)
    return np.asarray(np.maximum(known, larger) + tolerance * (np.abs(given) + np.abs(right)))
