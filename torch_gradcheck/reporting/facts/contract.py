"""What else holds of a function that others call: the entries of its contract."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ContractStatus(StrEnum):
    """What became of an entry of a function's contract."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True)
class ContractEntry:
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
