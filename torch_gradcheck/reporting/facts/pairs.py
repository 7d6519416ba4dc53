"""Entries of the gradient on trial beside the right ones, as a plot or a page shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch_gradcheck.reporting.facts.content import Record

VISIBLE = 0.05
"""Both gradients against each other show an entry that is off by 5 % of the largest one."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pairs(Record):
    """Some entries of a tensor's gradient: all of a small one; of a larger one a choice that holds the worst.

    Attributes:
        entries: their positions in the tensor, flat and in C order; a complex entry is two, real and imaginary part.
        analytic: the gradient on trial at each of them.
        numeric: what it is compared with.
        wrong: which of them are wrong, one flag each.
    """

    entries: tuple[int, ...]
    analytic: tuple[float, ...]
    numeric: tuple[float, ...]
    wrong: tuple[bool, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """How far the gradient on trial is above the right one at each entry."""
        return tuple([a - n for a, n in zip(self.analytic, self.numeric, strict=False)])

    @property
    def are_close(self) -> bool:
        """Whether no entry is off by so much that both gradients against each other would show it."""
        largest = max([abs(value) for value in (*self.analytic, *self.numeric) if math.isfinite(value)], default=0.0)
        return all(abs(off) < VISIBLE * largest for off in self.differences)

    def none_wrong(self) -> Pairs:
        """The same entries of a tensor that is no longer called wrong."""
        return replace(self, wrong=(False,) * len(self.wrong))

    def __repr__(self) -> str:
        return f"<Pairs: {len(self.entries)} entries, {sum(self.wrong)} of them wrong>"
