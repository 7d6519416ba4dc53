"""The entries of a function's contract that have another status in the new report than in the old one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import ContractEntry, ContractStatus, Facts
from torch_gradcheck.reporting.facts.content import Record
from torch_gradcheck.reporting.printable import printable


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ComparedEntry(Record):
    """One entry of a function's contract whose status is another one now; None in the report that has none."""

    name: str
    old: ContractEntry | None
    new: ContractEntry | None

    @property
    def is_broken(self) -> bool:
        """Whether it has failed now, and had not."""
        return _has_failed(self.new) and not _has_failed(self.old)

    @property
    def is_kept(self) -> bool:
        """Whether it had failed, and passes now."""
        return _has_failed(self.old) and self.new is not None and self.new.status is ContractStatus.PASSED

    def __repr__(self) -> str:
        old, new = (str(entry.status) if entry else "none" for entry in (self.old, self.new))
        return f"<ComparedEntry {printable(self.name)}: {old} → {new}>"


def entries_compared(new: Facts, old: Facts) -> Iterator[ComparedEntry]:
    """The entries of the contract that have another status, or are in one report only."""
    after, before = ({entry.name: entry for entry in facts.contract} for facts in (new, old))
    for name in [*after, *(name for name in before if name not in after)]:
        pair = before.get(name), after.get(name)
        if None in pair or len({entry.status for entry in pair if entry}) == 2:
            yield ComparedEntry(name, *pair)


def _has_failed(entry: ContractEntry | None) -> bool:
    return entry is not None and entry.status is ContractStatus.FAILED
