"""Where a report goes: to the terminal, and to the files that were asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from torch_gradcheck.command_line.printing import print_to
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.render.formats import FORMATS
from torch_gradcheck.reporting.render.terminal import page_of
from torch_gradcheck.reporting.render.text import text
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.saving import require_place_for, write_whole

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
        if path != STANDARD_OUTPUT:
            require_place_for(path)


def tell(report: Report, files: Mapping[str, Path], title: str) -> None:
    """Prints the report and writes the files. Its text gives way to a file on standard output, and goes to stderr."""
    stream = sys.stderr if STANDARD_OUTPUT in files.values() else sys.stdout
    print_to(stream, text(report, page_of(stream)))
    for suffix, path in files.items():
        content = FORMATS[suffix].write(report, title)
        if path == STANDARD_OUTPUT:
            print_to(sys.stdout, content)
        else:
            write_whole(path, content)
