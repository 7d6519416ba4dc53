"""An exception of the user's own code, printed with the frames that are the user's."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException

from torch_gradcheck.processes.failure import RAISED

OURS = Path(__file__).parents[1]
"""The folder of this package."""


def print_users(error: BaseException) -> None:
    """Prints an exception and what led to it; frames of this package only where they are the innermost, by a mistake.

    One that was raised on another rank has a note with its frames there.
    """
    shown = TracebackException.from_exception(error)
    _trim(shown)
    print("".join(shown.format()), end="", file=sys.stderr)


def _trim(shown: TracebackException) -> None:
    is_from_elsewhere = any(note.startswith(RAISED) for note in shown.__notes__ or ())
    if is_from_elsewhere or (shown.stack and not _is_hidden(shown.stack[-1])):
        frames = [frame for frame in shown.stack if not _is_hidden(frame)]
        shown.stack = StackSummary.from_list(frames) if frames else None  # type: ignore[assignment]
    for other in (shown.__cause__, shown.__context__):
        if other is not None:
            _trim(other)


def _is_hidden(frame: FrameSummary) -> bool:
    """Whether a frame is of this package, or of what calls its properties and runs the user's file for it."""
    is_between = frame.filename == functools.__file__ or frame.filename.startswith("<frozen ")
    return is_between or OURS in Path(frame.filename).parents
