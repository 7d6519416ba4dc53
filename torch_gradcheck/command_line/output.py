"""Where a report goes: to the terminal, and to the files that were asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TextIO

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.render.formats import FORMATS
from torch_gradcheck.reporting.report import Report

STANDARD_OUTPUT = Path("-")
"""The path that stands for standard output, as it does for other commands."""


def files_of(options: argparse.Namespace) -> dict[str, Path]:
    """The paths of the files that were asked for, by their format's suffix."""
    return {suffix: path for suffix in FORMATS if (path := getattr(options, suffix)) is not None}


def refuse_unwritable(paths: Collection[Path]) -> None:
    """Raises before the check, which may take long, if a report could not be written after it."""
    if list(paths).count(STANDARD_OUTPUT) > 1:
        raise InvalidRequestError("one report can be written to standard output, -: give the other one a file.")
    for path in paths:
        why = "" if path == STANDARD_OUTPUT else _why_unwritable(path)
        if why:
            raise InvalidRequestError(f"the report cannot be written to {path}: {why}.")


def _why_unwritable(path: Path) -> str:
    """Why no file can be written there; "" where one can, as far as can be seen before."""
    if path.is_dir():
        return "it is a directory"
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"no permission to write {'to it' if path.exists() else f'in {path.parent}'}"
    return ""


def tell(report: Report, files: Mapping[str, Path], title: str) -> None:
    """Prints the report and writes the files. Its text gives way to a file on standard output, and goes to stderr."""
    _print(str(report), sys.stderr if STANDARD_OUTPUT in files.values() else sys.stdout)
    for suffix, path in files.items():
        content = FORMATS[suffix].write(report, title)
        if path == STANDARD_OUTPUT:
            _print(content, sys.stdout)
        else:
            _write(path, content)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"the report cannot be written to {path}: {error.strerror or error}.") from error


def _print(text: str, stream: TextIO | None) -> None:
    """Prints, with "?" for letters that the stream's encoding lacks. A pipe that is closed early is no error."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="replace").decode(encoding), file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes it once more at its end
        if not isinstance(error, BrokenPipeError):  # a disk that is full
            raise
