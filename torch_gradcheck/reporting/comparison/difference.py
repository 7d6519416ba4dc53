"""What two reports say otherwise, as facts, without a word on how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from torch_gradcheck.reporting.comparison.entries import ComparedEntry
from torch_gradcheck.reporting.comparison.rows import Change, ComparedRow
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.facts.content import Record

CONDITIONS = ("method", "order", "mode", "dtype", "tolerance", "seed")
"""What both checks were asked for; where it differs, the reports say different things."""

ORIGINS = ("model", "torch", "devices")
"""What both checks were of and made with, where the reports tell."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Difference(Record):
    """What became of a check from an old report to a new one.

    Attributes:
        new, old: both reports.
        rows: all rows of both, in the order of the new one, then those that are gone.
        entries: of a function's contract, those of another status.
    """

    new: Facts
    old: Facts
    rows: tuple[ComparedRow, ...]
    entries: tuple[ComparedEntry, ...]

    @property
    def became_wrong(self) -> list[str]:
        """The rows that are wrong, and were right, not proven, not checked or not there."""
        return self._names(Change.BECAME_WRONG)

    @property
    def became_right(self) -> list[str]:
        """The rows that were wrong, and are proven right."""
        return self._names(Change.BECAME_RIGHT)

    @property
    def worse(self) -> list[str]:
        """The rows that are no longer proven, or whose error has more than doubled, beyond both error bars."""
        return self._names(Change.WORSE)

    @property
    def better(self) -> list[str]:
        """The rows that are proven and were not, or whose error is less than half, beyond both error bars."""
        return self._names(Change.BETTER)

    @property
    def changed(self) -> list[str]:
        """The rows of another status that is neither better nor worse, such as wrong then and undecided now."""
        return self._names(Change.CHANGED)

    @property
    def only_old(self) -> list[str]:
        """The rows that the new report has no more."""
        return [row.name for row in self.rows if row.new is None]

    @property
    def only_new(self) -> list[str]:
        """The rows that the old report did not have; those that are wrong are in `became_wrong` as well."""
        return [row.name for row in self.rows if row.old is None]

    @property
    def became_broken(self) -> list[str]:
        """The entries of a function's contract that have failed, and had not."""
        return [entry.name for entry in self.entries if entry.is_broken]

    @property
    def became_kept(self) -> list[str]:
        """The entries of a function's contract that had failed, and pass."""
        return [entry.name for entry in self.entries if entry.is_kept]

    @property
    def reference_became_wrong(self) -> bool:
        """Whether the reference beside which a candidate is compared is wrong, and was not."""
        return self.new.has_wrong_reference and not self.old.has_wrong_reference

    @property
    def regressed(self) -> bool:
        """Whether something became wrong: a row, an entry of the contract, the reference; or a row is gone."""
        return bool(self.became_wrong or self.became_broken or self.only_old or self.reference_became_wrong)

    @property
    def is_unchanged(self) -> bool:
        """Whether all rows and entries are as before, and what they prove together."""
        is_passed_alike = self.new.passed is self.old.passed and not self.reference_became_wrong
        return is_passed_alike and not self.entries and all(row.change is Change.SAME for row in self.rows)

    @property
    def conditions(self) -> dict[str, tuple[object, object]]:
        """What the two checks were not alike in, old and new: `{"mode": ("eval", "train")}`."""
        each = {name: (getattr(self.old, name), getattr(self.new, name)) for name in CONDITIONS}
        old, new = self.old.provenance, self.new.provenance
        if old is not None and new is not None:
            each |= {name: (_told(getattr(old, name)), _told(getattr(new, name))) for name in ORIGINS}
        return {name: values for name, values in each.items() if values[0] != values[1]}

    def __bool__(self) -> bool:
        return not self.regressed

    def _names(self, change: Change) -> list[str]:
        return [row.name for row in self.rows if row.change is change]


def _told(origin: str | tuple[str, ...]) -> str:
    return origin if isinstance(origin, str) else ", ".join(origin)
