"""`torch-gradcheck compare OLD.json NEW.json`: what became of a check, from the files of two reports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from torch_gradcheck.command_line.printing import print_to
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.comparison.comparison import Comparison
from torch_gradcheck.reporting.report import Report

COMPARE = "compare"
"""The first word of the command; no target of a check, since that has a colon."""

AS_BEFORE, BECAME_WRONG, COULD_NOT_READ, WORSE = 0, 1, 2, 3

EPILOG = (
    "Exit status: 0 nothing became wrong, 1 a gradient became wrong, an entry of a contract broken, or a row is gone, "
    "2 a file could not be read; with --strict 3 where a row is worse, such as no longer proven."
)


def compare(arguments: Sequence[str]) -> int:
    """Prints the comparison of two reports and returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        comparison = Report.load(options.new).compare(Report.load(options.old))
        print_to(sys.stdout, str(comparison))
    except (InvalidRequestError, OSError) as error:
        print(f"torch-gradcheck: {error}", file=sys.stderr)
        return COULD_NOT_READ
    if comparison.regressed:
        return BECAME_WRONG
    return WORSE if options.strict and _is_worse(comparison) else AS_BEFORE


def _is_worse(comparison: Comparison) -> bool:
    return bool(comparison.worse) or (comparison.old.passed and not comparison.new.passed)


def _parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog=f"torch-gradcheck {COMPARE}", description="Says what became of a check, row by row.", epilog=EPILOG
    )
    command.add_argument("old", metavar="OLD.json", help="the report of the earlier check, written by --json")
    command.add_argument("new", metavar="NEW.json", help="the report of the later one")
    command.add_argument("--strict", action="store_true", help="exit 3 where nothing became wrong and a row is worse")
    return command
