"""What a report says of the contract of a function: entries that have failed, that passed, that do not apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import ContractEntry, ContractStatus, Facts
from torch_gradcheck.reporting.printable import printable, prose
from torch_gradcheck.reporting.words import listed


@dataclass(frozen=True, slots=True)
class Clause:
    """An entry, or several that one sentence speaks of; `message` is "" where there is nothing to say of it."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Contract:
    """The section on the contract: how many entries passed, failed or do not apply, and what is said of each."""

    title: str
    failed: tuple[Clause, ...]
    passed: tuple[Clause, ...]
    not_applicable: tuple[Clause, ...]


def contract_section(facts: Facts) -> Contract | None:
    """Returns the section on the contract; None where the report has none."""
    if not facts.contract:
        return None
    failed, passed, not_applicable = (
        [entry for entry in facts.contract if entry.status is status]
        for status in (ContractStatus.FAILED, ContractStatus.PASSED, ContractStatus.NOT_APPLICABLE)
    )
    counts = ((passed, "passed"), (failed, "failed"), (not_applicable, "not applicable"))
    return Contract(
        title=f"contract: {', '.join(f'{len(entries)} {word}' for entries, word in counts if entries)}",
        failed=tuple(map(_clause, failed)),
        passed=tuple(map(_clause, passed)),
        not_applicable=_by_reason(not_applicable),
    )


def contract_outcome(facts: Facts) -> str:
    """Returns the outcome in the words of a headline; "" without entries that apply."""
    if facts.broken:
        names = listed([printable(entry.name) for entry in facts.broken], most=4)
        return f"contract BROKEN in {len(facts.broken)} of {len(facts.contract)} entries: {names}"
    return "contract kept" if any(entry.status is ContractStatus.PASSED for entry in facts.contract) else ""


def _clause(entry: ContractEntry) -> Clause:
    return Clause(printable(entry.name), prose(entry.message))


def _by_reason(entries: Sequence[ContractEntry]) -> tuple[Clause, ...]:
    """Returns one clause a reason, which names all entries that it is the reason of."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(prose(entry.message), []).append(printable(entry.name))
    return tuple(Clause(", ".join(of_one), reason) for reason, of_one in names.items())
