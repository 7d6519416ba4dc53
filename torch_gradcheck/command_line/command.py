"""The command's run: FUNCTION() is called and checked, the report is told, and the exit status is 0, 1, 2 or 3."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from torch_gradcheck.check import check_function, check_module
from torch_gradcheck.command_line.exit_status import COULD_NOT_CHECK, INTERRUPTED, MISMATCH, NOT_PROVEN, PASSED
from torch_gradcheck.command_line.launch import Ranks
from torch_gradcheck.command_line.options import parser
from torch_gradcheck.command_line.output import files_of, refuse_unwritable, tell
from torch_gradcheck.command_line.target import function_named, problem_of
from torch_gradcheck.command_line.users_error import print_error
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.pipeline.provenance import made_by
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import listed

OF_BOTH = ("eps", "tolerance", "seed", "progress", "order", "hold_detached")
"""The options that the check of a function has as well, besides the precision."""

OF_A_MODEL = ("method", "include", "exclude", "mode", "perturb")
"""The options that only the check of a model has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, the same one on all ranks that share the check.

    Args:
        arguments: the words behind the command's name; None takes them from the shell.
    """
    ranks = Ranks()
    options = ranks.parsed(parser(), arguments)
    try:
        words = sys.argv[1:] if arguments is None else arguments
        return _exit_status(_told(options, ranks, ranks.command(words)), options.strict)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        with ranks.one_voice():
            print_error(error, options.target)
        is_interrupt = isinstance(error, KeyboardInterrupt) and not ranks.are_several
        return INTERRUPTED if is_interrupt else COULD_NOT_CHECK
    finally:
        ranks.leave()


def _exit_status(report: Report, strict: bool) -> int:
    if report.is_wrong:
        return MISMATCH
    return PASSED if (report.proven if strict else report.passed) else NOT_PROVEN


def _told(options: argparse.Namespace, ranks: Ranks, command: Sequence[str]) -> Report:
    """The report, which the leader has printed and written when this returns; it says by which command it was made."""
    files = files_of(options)
    torch.manual_seed(options.seed)
    with ranks.together():  # joins them at its end, since the file itself may start a process group
        if ranks.leads:
            refuse_unwritable(files.values())
        function = function_named(options.target)
    with ranks.together():
        problem = problem_of(options.target, ranks.called(function))
    report = made_by(_checked(problem, options, ranks), command)
    with ranks.together():  # torchrun ends all ranks when one has left with another status than 0
        if ranks.leads:
            tell(report, files, options.target)
    return report


def _checked(problem: dict[str, Any], options: argparse.Namespace, ranks: Ranks) -> Report:
    if "function" not in problem:
        return check_module(**problem, **_chosen(options, (*OF_BOTH, *OF_A_MODEL)), group=ranks.group)
    given = [name for name in OF_A_MODEL if getattr(options, name) != parser().get_default(name)]
    if given:
        raise InvalidRequestError(
            f"{options.target}() returned (function, inputs), and {listed([f'--{name}' for name in given])} "
            f"{'is' if len(given) == 1 else 'are'} for models: leave out, or return (model, loss_fn, batch)."
        )
    return check_function(**problem, **_chosen(options, OF_BOTH), group=ranks.group)


def _chosen(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options of these names, and the precision, as a check takes them."""
    return {name: getattr(options, name) for name in names} | {"dtype": getattr(torch, options.dtype)}
