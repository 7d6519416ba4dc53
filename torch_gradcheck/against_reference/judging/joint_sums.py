"""Sums over entries that tie, which no choice between them changes: a gradient counted for each contradicts one.

Of two numbers that tie for a maximum either may be given its gradient, or both a share of it: together they get as
much. In general J has one slope along a direction in which numbers that tie move alike, and every generalised gradient
has it (Clarke, "Optimization and Nonsmooth Analysis", 1983). Which sums stay as they are is seen in the reference's
gradients beside the inputs.
"""

from __future__ import annotations

import math
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

FEW = 3
"""Of more entries than these one at least would have been seen to change, if all of them tied with others."""

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

    def agree(self, spans: Sequence[Span]) -> list[bool]:
        """Of each tensor whether few entries are beyond their spans, and a sum that kinks keep is right with each.

        Then a choice at kinks that was not seen is as likely as a mistake.
        """
        off = [span.is_beyond for span in spans]
        if sum([int(flags.sum()) for flags in off]) > FEW:
            return [False] * len(spans)
        explained = [np.zeros(len(flags), dtype=np.bool_) for flags in off]
        for each in self._sums:
            each.explain([span.off for span in spans], off, explained)
        return [bool(flags.any() and np.all(explained[k][flags])) for k, flags in enumerate(off)]


def _directions(each: Judged) -> dict[str, Floats]:
    """Ways in which numbers that tie move alike: equal ones, multiples of each other, and such up to their signs."""
    values = analytic_gradient(each.compared.entry, each.compared.entry.parameter, 0.0).values
    finite = np.where(np.isfinite(values), values, 0.0)
    return {"a constant": np.ones(len(values)), "itself": finite, "its sign": np.sign(finite)}


@dataclass(frozen=True)
class _Part:
    """One part of the tensors of a sum: what is added up to one entry, a part of these, or all.

    Attributes:
        shape: what the tensors are added up to.
        cut: which `number` is the part of; None of an entry.
        number: of the part.
        shapes: of the tensors, by their numbers.
    """

    shape: tuple[int, ...]
    cut: Cut | None
    number: int
    shapes: dict[int, tuple[int, ...]]

    @property
    def inside(self) -> dict[int, Flags]:
        """Its entries, by tensor."""
        flags = np.arange(math.prod(self.shape)) == self.number
        if self.cut is not None:
            flags = self.cut.part(self.number).inside(self.shape)
        return {k: _spread_over(flags, self.shape, shape) for k, shape in self.shapes.items()}

    @property
    def size(self) -> int:
        """How many entries it has."""
        share = 1 if self.cut is None else int(self.cut.counts[self.number])
        return sum([share * math.prod(shape) // math.prod(self.shape) for shape in self.shapes.values()])


def _size(part: _Part) -> int:
    return part.size


class _Along:
    """The sums of tensors along a direction through them.

    They are added up to the smallest of their shapes where that can be broadcast to the others, else to one number.
    What they add up to is summed over parts, and, of several tensors, is looked at entry by entry.

    Args:
        directions: by the number of each tensor, shape (coordinates,).
        gradients: all tensors.
        tolerance: the relative error that passes.
    """

    def __init__(self, directions: dict[int, Floats], gradients: Sequence[Judged], tolerance: float) -> None:
        self._directions = directions
        self._shapes = {k: gradients[k].compared.shape for k in directions}
        self._shape = _common(list(self._shapes.values()))
        self._cuts, self._by_entry = cuts_of(self._shape), len(directions) > 1
        self._right = {k: gradients[k].compared.right for k in directions}
        with np.errstate(all="ignore"):
            candidate = {k: gradients[k].compared.candidate[0] for k in directions}
            self._error = self._sums({k: candidate[k] - right for k, right in self._right.items()})
            self._bar = self._sizes({k: _allowed(gradients[k], tolerance) for k in directions})
        self._moved, self._spread, self._size = np.zeros((3, len(self._error)))

    def take_in(self, numbers: Sequence[Floats]) -> None:
        """What the reference gives at one more point."""
        with np.errstate(all="ignore"):
            moved = {k: numbers[k] - right for k, right in self._right.items()}
            self._moved = np.maximum(self._moved, self._sizes(moved))
            self._spread = np.maximum(self._spread, np.abs(self._sums(moved)))
            self._size = np.maximum(self._size, self._sizes({k: numbers[k] for k in self._directions}))

    @property
    def _is_kept(self) -> Flags:
        """The sums that stand still beside the inputs."""
        return np.asarray(self._spread <= SMOOTH * self._size)

    @property
    def _is_wrong(self) -> Flags:
        """The sums that are others for the candidate."""
        return np.asarray(np.abs(self._error) > self._bar)

    def contradicted(self, off: Sequence[Flags]) -> list[_Part]:
        """The parts whose sum stands still, and is another one for the candidate, with no entry that is off by itself.

        Args:
            off: which entries are, by tensor.
        """
        if not self._is_wrong.any():
            return []
        left = self._added({k: off[k].astype(np.float64) for k in self._directions}) > 0
        return [self._part(int(n)) for n in np.flatnonzero(self._is_wrong & ~left & self._is_kept)]

    def explain(self, errors: Sequence[Floats], off: Sequence[Flags], explained: Sequence[Flags]) -> None:
        """Marks the entries of parts with kinks whose sum is kept and right, though errors alone would make it wrong.

        Args:
            errors: how far each entry is off, by tensor.
            off: which entries are.
            explained: where they are marked.
        """
        with np.errstate(all="ignore"):
            alone = self._sizes({k: errors[k] * off[k] for k in self._directions})
        right = self._is_kept & (self._moved > SMOOTH * self._size) & ~self._is_wrong & (alone > self._bar)
        for number in np.flatnonzero(right):
            for k, inside in self._part(int(number)).inside.items():
                np.logical_or(explained[k], inside, out=explained[k])

    def _part(self, number: int) -> _Part:
        entries = math.prod(self._shape) if self._by_entry else 0
        if number < entries:
            return _Part(self._shape, None, number, self._shapes)
        number -= entries
        for cut in self._cuts:
            if number < len(cut.counts):
                break
            number -= len(cut.counts)
        return _Part(self._shape, cut, number, self._shapes)

    def _sums(self, values: dict[int, Floats]) -> Floats:
        return self._added({k: values[k] * direction for k, direction in self._directions.items()})

    def _sizes(self, values: dict[int, Floats]) -> Floats:
        return self._added({k: np.abs(values[k] * direction) for k, direction in self._directions.items()})

    def _added(self, values: dict[int, Floats]) -> Floats:
        """Over each part, shape (parts,)."""
        added = sum([_added_up(each, self._shapes[k], self._shape) for k, each in values.items()], np.zeros(1))
        return np.concatenate([*([added] if self._by_entry else []), *[cut.sums(added) for cut in self._cuts]])


def _common(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The smallest of the shapes, if it can be broadcast to all of them; else () of one number."""
    smallest = min(shapes, key=math.prod)
    return smallest if all(_is_broadcast(smallest, shape) for shape in shapes) else ()


def _is_broadcast(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(small, large) == large
    except ValueError:
        return False


def _added_up(values: Floats, shape: tuple[int, ...], to: tuple[int, ...]) -> Floats:
    """Values of one shape added up to another that can be broadcast to it."""
    padded = (1,) * (len(shape) - len(to)) + to
    axes = tuple(axis for axis, size in enumerate(padded) if size != shape[axis])
    return np.asarray(values.reshape(shape).sum(axis=axes)).ravel()


def _spread_over(flags: Flags, shape: tuple[int, ...], to: tuple[int, ...]) -> Flags:
    return np.broadcast_to(flags.reshape(shape), to).ravel()


def _allowed(each: Judged, tolerance: float) -> Floats:
    """How far each entry of a right tensor may be off; where the reference gives another one more, as of that."""
    given, right, bar = each.compared.candidate[0], each.compared.right, each.bars.entry
    known = np.where(each.bars.overflowed, np.inf, bar)
    relative = float(np.linalg.norm(bar) / max(float(np.linalg.norm(right)), np.finfo(np.float64).tiny))
    larger = max(relative, ROUNDED * each.compared.epsilon) * np.abs(given)
    return np.asarray(np.maximum(known, larger) + tolerance * (np.abs(given) + np.abs(right)))
