"""`torch-gradcheck compare OLD.json NEW.json`: what became of a check, from the files of two reports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from torch_gradcheck.command_line.printing import print_to
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.report import Report

COMPARE = "compare"
"""The first word of the command; no target of a check, since that has a colon."""

AS_BEFORE, BECAME_WRONG, COULD_NOT_READ = 0, 1, 2

EPILOG = (
    "Exit status: 0 nothing became wrong, 1 a gradient became wrong, an entry of a contract broken, or a row is gone, "
    "2 a file could not be read."
)


def compare(arguments: Sequence[str]) -> int:
    """Prints the comparison of two reports and returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        old, new = Report.load(options.old), Report.load(options.new)
    except (InvalidRequestError, OSError) as error:
        print(f"torch-gradcheck: {error}", file=sys.stderr)
        return COULD_NOT_READ
    comparison = new.compare(old)
    print_to(sys.stdout, str(comparison))
    return BECAME_WRONG if comparison.regressed else AS_BEFORE


def _parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog=f"torch-gradcheck {COMPARE}", description="Says what became of a check, row by row.", epilog=EPILOG
    )
    command.add_argument("old", metavar="OLD.json", help="the report of the earlier check, written by --json")
    command.add_argument("new", metavar="NEW.json", help="the report of the later one")
    return command
