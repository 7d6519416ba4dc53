"""An exception on its way from the rank it was raised on to the others."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from traceback import StackSummary, format_list, walk_tb
from typing import Any

from torch_gradcheck.errors import ProcessGroupError
from torch_gradcheck.torch_internals.code_lines import is_of_the_user, is_ours

LARGEST = 2**20
"""Bytes (1 MiB) from which on an exception is told in words: it holds on to more than what it says."""


RAISED = "raised on rank"
"""Begins the note on where an exception is from."""


@dataclass(frozen=True)
class Failure:
    """What a rank ended in.

    Attributes:
        rank: where it was raised.
        words: type and text of the exception.
        traceback: where, as Python prints it: the user's own frames; where there are none, all but this package's.
        pickled: the exception for the other ranks; None where it cannot be sent, or is one of a signal.
        error: the exception itself, on the rank where it was raised; None elsewhere.
    """

    rank: int
    words: str
    traceback: str
    pickled: bytes | None
    error: BaseException | None = field(default=None, compare=False)

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """The failure of this rank."""
        return cls(rank, _words(error), _frames(error), _pickled(error), error)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "error": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def here(self) -> BaseException:
        """The exception to raise on this rank: the original, elsewhere with a note of where it is from."""
        if self.error is not None:
            return self.error
        error = _read(self.pickled)
        if error is None:
            error = ProcessGroupError(f"rank {self.rank} ended the check on all ranks with {self.words}")
        if not any(note.startswith(RAISED) for note in getattr(error, "__notes__", ())):
            where = f":\n{self.traceback.rstrip()}" if self.traceback else ""
            error.add_note(f"{RAISED} {self.rank}{where}")
        return error


def _words(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # of the user's class: a rank that raised it here would leave the others waiting
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _frames(error: BaseException) -> str:
    frames = [each for each in walk_tb(error.__traceback__) if not is_ours(each[0].f_code)]
    own = [each for each in frames if is_of_the_user(each[0].f_code)]
    return "".join(format_list(StackSummary.extract(iter(own or frames))))


def _pickled(error: BaseException) -> bytes | None:
    """The exception as bytes; None where it is one of a signal, or would be another one when it is read."""
    if not isinstance(error, Exception):
        return None
    try:
        pickled = pickle.dumps(error)
        copy = pickle.loads(pickled)
        same = type(copy) is type(error) and str(copy) == str(error)
    except BaseException:  # of the user's class, as above
        return None
    return pickled if same and len(pickled) <= LARGEST else None


def _read(pickled: bytes | None) -> Exception | None:
    """The exception; None where this rank does not know its class."""
    try:
        error = None if pickled is None else pickle.loads(pickled)
    except BaseException:  # of the user's class, as above
        return None
    return error if isinstance(error, Exception) else None
