"""What pytest shows of a traceback: no frame of this package, so that it leads from the test to the user's code."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import pytest

import torch_gradcheck
from torch_gradcheck.errors import GradcheckError, MisfitError
from torch_gradcheck.tracebacks import OURS, chain, entries_of, is_in, keep, shows_all_frames, users_alone


class FrameFilter:
    """A plugin that takes our frames out of every traceback, for those styles of pytest that would show them too.

    Its hook runs behind the one by which a `TestCase` hands its error over, and before the report is made.
    """

    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """Takes them out of the traceback of a test that has failed."""
        if call.excinfo is not None:
            for error in with_examples(call.excinfo.value):
                without_package(error)


def with_examples(error: BaseException) -> list[BaseException]:
    """An error and, where a doctest has ended with it, what its examples have raised."""
    kind = type(error).__name__
    ended: list[Any] = getattr(error, "failures", []) if kind == "MultipleDoctestFailures" else [error]
    return [error, *(one.exc_info[1] for one in ended if type(one).__name__ == "UnexpectedException")]


def is_hidden(_: object = None) -> bool:
    """What a frame of the plugin says in its `__tracebackhide__`: it is shown only where all frames are asked for."""
    return not shows_all_frames()


def without_ours(error: BaseException) -> None:
    """Takes the frames of this package out of the traceback of an error, and of those that led to it.

    Of an error that the package raises on purpose no frame is left: its message says what is wrong, and it is mended
    where the check was called. All others keep the frames of the user's code alone, without torch's. One whose
    innermost frame is ours, and that led to none on purpose, keeps them all: it is a mistake of this package.
    """
    is_on_purpose = isinstance(error, GradcheckError)
    for one in chain(error):
        entries = entries_of(one)
        if isinstance(one, GradcheckError):
            keep(one, [])
            _forget_causes_of_ours(one)
        elif is_on_purpose or (entries and not is_in(OURS, entries[-1])):
            keep(one, users_alone(entries))


def without_package(error: BaseException) -> None:
    """Takes the frames of this package out of all that has come through it, also where a test has called it itself.

    Nothing changes in a traceback that has none of them, nor in that of a mistake of this package, beside the frames of
    the fixture that only pass on.
    """
    is_on_purpose = is_of_package(error)
    for one in chain(error):
        if is_of_package(one):
            _forget_causes_of_ours(one)
        entries = [entry for entry in entries_of(one) if not _only_passes_on(entry)]
        keep(one, users_alone(entries) if is_on_purpose or _came_through(entries) else entries)


def _only_passes_on(entry: TracebackType) -> bool:
    return entry.tb_frame.f_locals.get("__tracebackhide__") is is_hidden


def _came_through(entries: Sequence[TracebackType]) -> bool:
    """Whether an error of other code has come through this package."""
    return any(is_in(OURS, entry) for entry in entries) and not is_in(OURS, entries[-1])


def is_of_package(value: object) -> bool:
    """Whether an error, or any object, is of a class of this package; no import is needed to tell that it is not."""
    return type(value).__module__.startswith(f"{torch_gradcheck.__name__}.")


def _forget_causes_of_ours(error: BaseException) -> None:
    """Leaves out what led to an error of ours where all of that has happened inside of this package.

    What torch has raised stays: its frames may be gone already.
    """
    causes = [one for one in (error.__cause__, error.__context__) if one is not None]
    is_ours = all(not [entry for entry in entries_of(one) if not is_in(OURS, entry)] for one in causes)
    if is_ours and not isinstance(error, MisfitError):
        error.__cause__ = error.__context__ = None
