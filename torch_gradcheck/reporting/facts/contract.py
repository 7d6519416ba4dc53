"""What else holds of a function that others call: the entries of its contract."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch_gradcheck.reporting.facts.content import Record
from torch_gradcheck.reporting.facts.one_line import in_one_line


class ContractStatus(StrEnum):
    """What became of an entry of a function's contract."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ContractEntry(Record):
    """What else holds of a function that others call inside their models, besides its gradient.

    Attributes:
        name: of the entry, such as `grad_output_kept`.
        status: see `ContractStatus`.
        message: of a failure what was done, found and should have been; why an entry is not applicable; of one that
            passed what was tried, or "".
    """

    name: str
    status: ContractStatus
    message: str = ""

    def __repr__(self) -> str:
        message = f", {in_one_line(self.message)}" if self.message else ""
        return f"<ContractEntry {in_one_line(self.name)}: {self.status}{message}>"
