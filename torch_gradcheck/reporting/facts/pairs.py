"""Entries of the gradient on trial beside the right ones, as a plot or a page shows them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch_gradcheck.reporting.facts.content import Record


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

    def none_wrong(self) -> Pairs:
        """The same entries of a tensor that is no longer called wrong."""
        return replace(self, wrong=(False,) * len(self.wrong))

    def __repr__(self) -> str:
        return f"<Pairs: {len(self.entries)} entries, {sum(self.wrong)} of them wrong>"
