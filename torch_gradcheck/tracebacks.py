"""Tracebacks that lead from the user's call to the user's own code, past the frames of this package and of torch."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from torch_gradcheck.errors import GradcheckError

OURS = str(Path(__file__).parent)
"""The folder of this package."""

BETWEEN = (functools.__file__, contextlib.__file__)
"""Files whose frames are there because ours call them: cached properties and context managers."""

GENERATED = "<string>"
"""The file that Python names for code which a dataclass or a named tuple has written."""

ALL_FRAMES = "TORCH_GRADCHECK_FULL_TRACE"
"""The environment variable that keeps all frames, where it is neither empty nor 0."""

_asked: list[str] = []
"""Who has asked for all frames."""


class UsersFrames:
    """A block behind which an error of this package, and what led to it, has come through the user's code alone.

    Put around all of a public function, it leaves no frame of that either: Python adds the frames of callers only. Such
    an error says what is wrong and where; others keep all frames, as everything does where all are asked for.
    """

    def __enter__(self) -> None:
        """Nothing is to be done before."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, GradcheckError) and not shows_all_frames():
            for one in chain(error):
                _forget_context_of_ours(one)
            for one in chain(error):
                keep(one, users_alone(entries_of(one)))


def _forget_context_of_ours(error: BaseException) -> None:
    """Leaves out an exception that an error was raised after, not from, where this package alone has seen it."""
    context = error.__context__
    if not isinstance(error, GradcheckError) or context is None or context is error.__cause__:
        return
    if not [entry for entry in entries_of(context) if not is_in(OURS, entry)]:
        error.__context__ = None


def shows_all_frames() -> bool:
    """Whether tracebacks are asked for as they are."""
    return bool(_asked) or os.environ.get(ALL_FRAMES, "") not in ("", "0")


def show_all_frames() -> Callable[[], None]:
    """Leaves tracebacks as they are, until what it returns is called."""
    _asked.append(ALL_FRAMES)
    return lambda: _asked.remove(ALL_FRAMES)


def chain(error: BaseException) -> list[BaseException]:
    """An error, those that led to it, and the members of groups among them."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and all(one is not other for other in found):
            found.append(one)
            waiting += [one.__cause__, one.__context__]
            waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return found


def entries_of(error: BaseException) -> list[TracebackType]:
    """What an error has come through, the outermost first."""
    entries, entry = [], error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    return entries


def keep(error: BaseException, entries: Sequence[TracebackType]) -> None:
    """Makes these entries the traceback of an error."""
    for entry, following in pairwise([*entries, None]):
        if entry is not None:
            entry.tb_next = following
    error.with_traceback(entries[0] if entries else None)  # an attribute of a frozen error cannot be set


def users_alone(entries: Sequence[TracebackType]) -> list[TracebackType]:
    """The entries of the user's code: neither ours nor torch's, nor called by ours to get from one to another."""
    torch = sys.modules.get("torch")
    folder = str(Path(torch.__file__).parent) if torch is not None and torch.__file__ else OURS
    return [entry for entry in not_ours(entries) if not is_in(folder, entry)]


def not_ours(entries: Sequence[TracebackType]) -> list[TracebackType]:
    """The entries that are not ours, nor called by ours to get from one to another."""
    kept, is_behind_ours = [], False
    for entry in entries:
        is_behind_ours = is_in(OURS, entry) or (is_behind_ours and entry.tb_frame.f_code.co_filename in BETWEEN)
        if not is_behind_ours:
            kept.append(entry)
    return kept


def is_in(folder: str, entry: TracebackType) -> bool:
    """Whether code is in a folder, or was generated for it, as the `__init__` of a dataclass."""
    file = entry.tb_frame.f_code.co_filename
    package = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return file.startswith(folder + os.sep) or (file == GENERATED and package == Path(folder).name)
