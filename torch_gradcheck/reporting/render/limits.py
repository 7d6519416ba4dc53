"""How much a report tells one by one; the rest is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_gradcheck.reporting.printable import printable

LISTED = 8
"""Groups of unproven parameters and tied parameters that are described one by one: 8 of each."""

NAMED = 6
"""Names in one sentence; the others are counted, as in "and 12 more"."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is told one by one: groups and sentences, and names in a sentence; None for all."""

    listed: int | None = LISTED
    named: int | None = NAMED

    def names(self, names: Sequence[str]) -> str:
        """Returns names in a sentence; those beyond the limit are counted, as in "and 12 more"."""
        first = names[: self.named]
        listed = ", ".join(map(printable, first))
        return f"{listed} and {len(names) - len(first):,} more" if len(names) > len(first) else listed


ALL = Limits(None, None)
