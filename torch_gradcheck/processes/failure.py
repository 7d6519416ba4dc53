"""An exception on its way from the rank it was raised on to the others."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from torch_gradcheck.errors import ProcessGroupError


@dataclass(frozen=True)
class Failure:
    """What a rank ended in.

    Attributes:
        rank: where it was raised.
        words: type and text of the exception.
        error: the exception itself; None where it cannot be sent, or is one of a signal.
    """

    rank: int
    words: str
    error: BaseException | None

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """The failure of this rank; the exception stays with it, for `error_on` there."""
        return cls(rank, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, error)

    def __getstate__(self) -> dict[str, object]:
        return {"rank": self.rank, "words": self.words, "error": self.error if self._can_be_sent else None}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)

    @property
    def _can_be_sent(self) -> bool:
        if not isinstance(self.error, Exception):
            return False
        try:
            pickle.loads(pickle.dumps(self.error))
        except Exception:
            return False
        return True

    def error_on(self, rank: int) -> BaseException:
        """The exception that a rank raises: the original, elsewhere with a note of where it is from."""
        if self.error is None:
            return ProcessGroupError(f"rank {self.rank} ended the check on all ranks with {self.words}")
        if rank != self.rank:
            self.error.add_note(f"raised on rank {self.rank}")
        return self.error
