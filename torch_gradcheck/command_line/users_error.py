"""Why there is no verdict, said on standard error: one message, with the frames that are the user's own."""

from __future__ import annotations

import sys
import tempfile
from traceback import FrameSummary, StackSummary, TracebackException, walk_tb

from torch_gradcheck.errors import GradcheckError, ProcessGroupError
from torch_gradcheck.processes.failure import RAISED
from torch_gradcheck.torch_internals.code_lines import is_frame_of_the_user, is_ours
from torch_gradcheck.version import __version__

HEADER, IN_YOUR_CODE = "Traceback (most recent call last):", "In your code (most recent call last):"
"""What Python prints above frames, and what the command does: the frames are not all that led there."""


def print_error(error: BaseException, target: str) -> None:
    """Says why there is no verdict; of an error of the user's own code also where.

    Args:
        error: what has ended the command.
        target: what the command was asked to check.
    """
    if isinstance(error, KeyboardInterrupt):
        why = "interrupted"
    elif isinstance(error, GradcheckError):
        _print_frames(error)
        why = str(error)
    elif isinstance(error, OSError) and not _users_frames(error):
        why = str(error)
    elif _is_our_mistake(error):
        why = _kept(error)
    else:
        _print_users(error)
        why = f"{target} ended in {type(error).__name__}"
    print(f"torch-gradcheck: {why}", file=sys.stderr)


def _print_frames(error: GradcheckError) -> None:
    """Prints the user's own frames that led to what could not be checked; none where the user's code did not run."""
    frames = [] if isinstance(error, ProcessGroupError) else _users_frames(error.__cause__ or error)
    if frames:
        print("".join([IN_YOUR_CODE, "\n", *StackSummary.from_list(frames).format()]), end="", file=sys.stderr)


def _users_frames(error: BaseException) -> list[FrameSummary]:
    """The frames of an exception that are the user's: neither of this package, nor of torch, nor of Python's own."""
    return _users_of(TracebackException.from_exception(error), error)


def _users_of(shown: TracebackException, error: BaseException) -> list[FrameSummary]:
    """The same of an exception whose frames have been summed up."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return [each for each, frame in zip(shown.stack or (), frames, strict=False) if is_frame_of_the_user(frame)]


def _print_users(error: BaseException) -> None:
    """Prints an exception and what led to it, in the user's own frames.

    One that was raised on another rank has a note with its frames there.
    """
    shown = TracebackException.from_exception(error)
    _trim(shown, error)
    print("".join(shown.format()).replace(HEADER, IN_YOUR_CODE), end="", file=sys.stderr)


def _trim(shown: TracebackException, error: BaseException) -> None:
    frames = _users_of(shown, error)
    shown.stack = StackSummary.from_list(frames) if frames else None  # type: ignore[assignment]
    for other, led in ((shown.__cause__, error.__cause__), (shown.__context__, error.__context__)):
        if other is not None and led is not None:
            _trim(other, led)


def _is_our_mistake(error: BaseException) -> bool:
    """Whether an exception was raised in this package itself, on this rank: it raises errors of its own on purpose."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    is_from_elsewhere = any(note.startswith(RAISED) for note in getattr(error, "__notes__", ()))
    return bool(frames) and not is_from_elsewhere and is_ours(frames[-1].f_code)


def _kept(error: BaseException) -> str:
    """The words on a mistake of this package, whose trace is kept in a file."""
    what = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    words = f"this looks like a mistake in torch-gradcheck {__version__}, not in your code ({what})."
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="torch-gradcheck-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write("".join(TracebackException.from_exception(error).format()))
    except OSError as full:
        return f"{words} Its trace could not be kept: {full}."
    return f"{words} Please report it with the trace in {file.name}."
