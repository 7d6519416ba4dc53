"""Lines of the user's code, as file and number: where something is called from, and where a callable is defined."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import CodeType, FrameType

import torch

INSTALLED = {name: Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}


def _beginnings(folder: str | Path) -> tuple[str, ...]:
    """What the names of files in a folder begin with: as the interpreter finds it, and where links lead to."""
    return tuple(f"{path}{os.sep}" for path in (Path(folder), Path(folder).resolve()))


OF_TORCH, OF_OURS = _beginnings(torch.__path__[0]), _beginnings(Path(__file__).parents[1])
"""Torch and this package: their lines tell the user nothing."""

GENERATED, PACKAGES = "<string>", ("torch", __name__.partition(".")[0])
"""What Python calls the file of code that a dataclass has written, and the packages that are not the user's."""

OF_PYTHON = _beginnings(sysconfig.get_path("stdlib"))
"""The standard library, in which the packages that are installed may lie."""

LONGEST_DECORATORS = 20
"""Lines that the decorators of a function may take; below more of them its `def` is not looked for."""


@dataclass(frozen=True, slots=True)
class CodeLine:
    """A line of the user's code.

    Attributes:
        file: as the interpreter knows it, such as `"/home/me/nets/swish.py"` or `"<stdin>"`.
        line: its number, from 1.
    """

    file: str
    line: int

    def __str__(self) -> str:
        """As editors and terminals can follow it: relative where it is installed, or below the working directory."""
        return f"{_short(self.file)}:{self.line}"


def calling_frame() -> FrameType | None:
    """The frame that called the function which asks; of a dispatch or function mode, what asked for the operation."""
    return sys._getframe(1).f_back


def calling_line(frame: FrameType | None = None, *, inside: CodeType | None = None) -> CodeLine | None:
    """The innermost line of the user's, neither of torch nor of this package, that is running now or in `frame`.

    None where there is none, as in the threads in which autograd runs a backward. Frames outside of the call of
    `inside`, a function of this package, are not looked at: the line that asked for the check is none of J.
    """
    if frame is None:
        frame = sys._getframe(1)
    while frame is not None and frame.f_code is not inside:
        if is_frame_of_the_user(frame):
            return CodeLine(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def raising_line(error: BaseException) -> CodeLine | None:
    """The innermost line of the user's that an exception has come through; None where there is none."""
    come_through = [*walk_tb(error.__traceback__)]
    lines = [CodeLine(frame.f_code.co_filename, line) for frame, line in come_through if is_frame_of_the_user(frame)]
    return lines[-1] if lines else None


def defining_line(function: object) -> CodeLine | None:
    """The line of the `def` of a function or method, the first one of a class; None where Python does not know it.

    What `functools.wraps` or `functools.partial` have wrapped is found, and the `__call__` of an object with one.
    """
    function = _innermost(function)
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):  # `inspect` would look for the source, and may find that of another file
        return CodeLine(code.co_filename, _line_of_def(code))
    try:
        file = inspect.getsourcefile(function)  # type: ignore[arg-type]
        _, line = inspect.getsourcelines(function)  # type: ignore[arg-type]
    except (TypeError, OSError):
        return None
    return CodeLine(file, line or 1) if file else None


def _line_of_def(code: CodeType) -> int:
    """The line of the `def` below a function's decorators; where the source is not there, the first one of these."""
    first = code.co_firstlineno
    lines = [linecache.getline(code.co_filename, first + k).strip() for k in range(LONGEST_DECORATORS)]
    if lines[0].startswith("@"):
        for number, line in enumerate(lines):
            if line.startswith((f"def {code.co_name}(", f"async def {code.co_name}(", f"def {code.co_name}[")):
                return first + number
    return first


def users_line_of(function: object) -> CodeLine | None:
    """The line on which a function of the user's starts; None for one of torch, this package or without a line."""
    code = getattr(_innermost(function), "__code__", None)
    return defining_line(function) if isinstance(code, CodeType) and is_of_the_user(code) else None


def at_line_of(function: object) -> str:
    """The words " at FILE:LINE" for a function of the user's; "" for one without such a line."""
    line = users_line_of(function)
    return "" if line is None else f" at {line}"


def _innermost(function: object) -> object:
    """The function that was written, without what is wrapped around it."""
    while isinstance(function, functools.partial):
        function = function.func
    if callable(function) and not inspect.isclass(function):
        if not hasattr(function, "__code__") and not hasattr(function, "__wrapped__"):
            function = type(function).__call__
        function = inspect.unwrap(function)
    return function


def is_frame_of_the_user(frame: FrameType) -> bool:
    """Whether the user's code runs in a frame, and none that was generated for torch or for this package."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return is_of_the_user(frame.f_code) and not (frame.f_code.co_filename == GENERATED and package in PACKAGES)


def is_of_the_user(code: CodeType) -> bool:
    """Whether code is neither torch's, nor this package's, nor the standard library's."""
    return is_file_of_the_user(code.co_filename)


def is_file_of_the_user(file: str) -> bool:
    """The same of the file that the code is in."""
    if file.startswith(("<frozen", *OF_TORCH, *OF_OURS)):
        return False
    return not file.startswith(OF_PYTHON) or "site-packages" in file or "dist-packages" in file


def is_of_torch(code: CodeType) -> bool:
    """Whether code is torch's."""
    return code.co_filename.startswith(OF_TORCH)


def is_ours(code: CodeType) -> bool:
    """Whether code is this package's."""
    return code.co_filename.startswith(OF_OURS)


def _short(file: str) -> str:
    if file.startswith("<"):
        return file
    for root in (Path.cwd(), *INSTALLED.values()):
        if Path(file).is_relative_to(root):
            return Path(file).relative_to(root).as_posix()
    return file
