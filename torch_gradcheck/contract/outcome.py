"""What becomes of an entry, in words: it holds, it does not, it does not apply; and exceptions of the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch_gradcheck.reporting.facts import ContractEntry, ContractStatus
from torch_gradcheck.torch_internals.code_lines import raising_line

Result = TypeVar("Result")

UNREPEATABLE = "two equal calls differ: see repeatable"
"""Why results of several calls cannot be compared."""

SPARSE = "not tried with sparse arguments"
"""What is said where neither forward mode nor vmap goes through what makes a sparse tensor of its values."""

LENGTH = 200
"""The number of characters that are shown of the first line of an error."""


def passed(name: str, message: str = "") -> ContractEntry:
    """The entry that holds; `message` says what was tried, where a reader should know."""
    return ContractEntry(name, ContractStatus.PASSED, message)


def failed(name: str, message: str) -> ContractEntry:
    """The entry that does not hold; `message` says what was done, found and should have been."""
    return ContractEntry(name, ContractStatus.FAILED, message)


def not_applicable(name: str, reason: str) -> ContractEntry:
    """The entry that there is nothing to try of, or that nothing can be told of."""
    return ContractEntry(name, ContractStatus.NOT_APPLICABLE, reason)


@dataclass(frozen=True)
class Raised:
    """An exception of the function inside of a trial; as text its type, its first line and the line of the user's code.

    Attributes:
        error: the exception.
    """

    error: Exception

    def __str__(self) -> str:
        first = str(self.error).strip().partition("\n")[0]
        text = first if len(first) <= LENGTH else first[:LENGTH] + " ..."
        line = raising_line(self.error)
        words = f"{type(self.error).__name__}: {text}" if text else type(self.error).__name__
        return words if line is None else f"{words} ({line})"


def attempted(run: Callable[[], Result]) -> Result | Raised:
    """What `run` returns, or the exception that it raises; Ctrl-C comes through."""
    try:
        return run()
    except Exception as error:
        return Raised(error)
