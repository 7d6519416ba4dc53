"""What pytest shows of a traceback: no frame of this package, so that it leads from the test to the user's code."""

from __future__ import annotations

from pathlib import Path

import torch_gradcheck
from torch_gradcheck.errors import MisfitError
from torch_gradcheck.tracebacks import OURS, chain, entries_of, is_in, keep, users_alone

PLUGIN = str(Path(__file__).parent)
"""The folder of the plugin."""


def without_ours(error: BaseException) -> None:
    """Takes the frames of this package out of the traceback of an error, and of those that led to it.

    Of an error that the package raises on purpose no frame is left: its message says what is wrong, and it is mended
    where the check was called. All others keep the frames of the user's code alone, without torch's. One whose
    innermost frame is ours, and that led to none on purpose, keeps them all: it is a mistake of this package.
    """
    is_on_purpose = isinstance(error, torch_gradcheck.GradcheckError)
    for one in chain(error):
        entries = entries_of(one)
        if isinstance(one, torch_gradcheck.GradcheckError):
            keep(one, [])
            _forget_causes_of_ours(one)
        elif is_on_purpose or (entries and not is_in(OURS, entries[-1])):
            keep(one, users_alone(entries))


def without_package(error: BaseException) -> None:
    """Leaves the frames of the user's code alone, the test's too, where the package has raised an error on purpose."""
    for one in chain(error):
        _forget_causes_of_ours(one)
        keep(one, users_alone(entries_of(one)))


def is_of_package(value: object) -> bool:
    """Whether an error, or any object, is of a class of this package; no import is needed to tell that it is not."""
    return type(value).__module__.startswith(f"{torch_gradcheck.__name__}.")


def without_plugin(error: BaseException) -> None:
    """Takes the frames of the plugin out of the traceback of an error that has come through it, or led to one."""
    for one in chain(error):
        keep(one, [entry for entry in entries_of(one) if not is_in(PLUGIN, entry)])


def _forget_causes_of_ours(error: BaseException) -> None:
    """Leaves out what led to an error of ours where all of that has happened inside of this package.

    What torch has raised stays: its frames may be gone already.
    """
    causes = [one for one in (error.__cause__, error.__context__) if one is not None]
    is_ours = all(not [entry for entry in entries_of(one) if not is_in(OURS, entry)] for one in causes)
    if is_ours and not isinstance(error, MisfitError):
        error.__cause__ = error.__context__ = None
