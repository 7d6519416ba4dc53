"""Takes the frames of this package out of a traceback, so that it leads from the test to the user's own code."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import torch_gradcheck

OURS = str(Path(torch_gradcheck.__file__).parent)
"""The folder of this package."""

PLUGIN = str(Path(__file__).parent)
"""The folder of the plugin."""

BETWEEN = (functools.__file__, contextlib.__file__)
"""Files whose frames are there because ours call them: cached properties and context managers."""

GENERATED = "<string>"
"""The file that Python names for code which a dataclass or a named tuple has written."""


def without_ours(error: BaseException) -> None:
    """Takes the frames of this package out of the traceback of an error, and of those that led to it.

    Of an error that the package raises on purpose no frame is left: its message says what is wrong, and it is mended
    where the check was called. What led to it keeps the frames of the user's code alone: torch's are in its words.
    Any other error whose innermost frame is ours keeps them all: it is a mistake of this package.
    """
    is_on_purpose = isinstance(error, torch_gradcheck.GradcheckError)
    for one in chain(error):
        entries = _entries(one)
        if isinstance(one, torch_gradcheck.GradcheckError):
            _keep(one, [])
            _forget_causes_of_ours(one)
        elif is_on_purpose:
            _keep(one, _users_alone(entries))
        elif entries and not _is_in(OURS, entries[-1]):
            _keep(one, _users_alone(entries) or _not_ours(entries))


def without_package(error: BaseException) -> None:
    """Leaves the frames of the user's code alone, the test's too, where the package has raised an error on purpose."""
    for one in chain(error):
        _forget_causes_of_ours(one)
        _keep(one, _users_alone(_entries(one)))


def is_of_package(error: BaseException) -> bool:
    """Whether an error is of a class of this package; no import is needed to tell that it is not."""
    return type(error).__module__.startswith(f"{torch_gradcheck.__name__}.")


def without_plugin(error: BaseException) -> None:
    """Takes the frames of the plugin out of the traceback of an error that has come through it, or led to one."""
    for one in chain(error):
        _keep(one, [entry for entry in _entries(one) if not _is_in(PLUGIN, entry)])


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


def _entries(error: BaseException) -> list[TracebackType]:
    entries, entry = [], error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    return entries


def _keep(error: BaseException, entries: Sequence[TracebackType]) -> None:
    """Makes these entries the traceback of an error."""
    for entry, following in pairwise([*entries, None]):
        if entry is not None:
            entry.tb_next = following
    error.with_traceback(entries[0] if entries else None)  # an attribute of a frozen error cannot be set


def _users_alone(entries: Sequence[TracebackType]) -> list[TracebackType]:
    """The entries of the user's code: neither ours nor torch's, nor called by ours to get from one to another."""
    torch = sys.modules.get("torch")
    folder = str(Path(torch.__file__).parent) if torch is not None and torch.__file__ else OURS
    return [entry for entry in _not_ours(entries) if not _is_in(folder, entry)]


def _not_ours(entries: Sequence[TracebackType]) -> list[TracebackType]:
    """The entries that are not ours, nor called by ours to get from one to another."""
    kept, is_behind_ours = [], False
    for entry in entries:
        is_behind_ours = _is_in(OURS, entry) or (is_behind_ours and entry.tb_frame.f_code.co_filename in BETWEEN)
        if not is_behind_ours:
            kept.append(entry)
    return kept


def _forget_causes_of_ours(error: BaseException) -> None:
    """Leaves out what led to an error of ours where all of that has happened inside of this package."""
    causes = [one for one in (error.__cause__, error.__context__) if one is not None]
    if all(not [entry for entry in _entries(one) if not _is_in(OURS, entry)] for one in causes):
        error.__cause__ = error.__context__ = None


def _is_in(folder: str, entry: TracebackType) -> bool:
    """Whether code is in a folder, or was generated for it, as the `__init__` of a dataclass."""
    file = entry.tb_frame.f_code.co_filename
    package = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return file.startswith(folder + os.sep) or (file == GENERATED and package == Path(folder).name)
