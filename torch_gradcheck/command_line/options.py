"""The words and flags that the command understands."""

from __future__ import annotations

import argparse
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.render.formats import FORMATS
from torch_gradcheck.request import DTYPES, MAX_SEED, MODES
from torch_gradcheck.version import __version__

DESCRIPTION = "Checks the gradients of a PyTorch model, or a function of tensors, against float64 centered differences."

EPILOG = (
    "Exit status: 0 passed, 1 a gradient is wrong, that of a reference too, or the contract of a function broken, 2 it "
    "could not be checked, 3 nothing is wrong and no gradient is proven right (with --strict: not every one is), 130 "
    "it was interrupted. Started by torchrun, the processes share the check, and exit alike. "
    "torch-gradcheck compare OLD.json NEW.json says what became of a check since a report that --json has written."
)


class Parser(argparse.ArgumentParser):
    """A parser that names the options that an unknown one may have meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The words of the command; exits with a message where they cannot be used."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = re.findall(r"--[a-z][a-z-]*", self.format_help())
            close = [name for word in unknown for name in get_close_matches(word.partition("=")[0], known, n=1)]
            hint = f"; close names: {', '.join(dict.fromkeys(close))}" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options


def parser() -> argparse.ArgumentParser:
    """The parser of the command's words."""
    command = Parser(prog="torch-gradcheck", description=DESCRIPTION, epilog=EPILOG)
    command.add_argument(
        "target",
        metavar="FILE.py:FUNCTION",
        help="or package.module:FUNCTION; FUNCTION() returns (model, loss_fn, batch) or, for check_function, "
        "(function, inputs); a reference behind these, or a mapping of the names, as {'function': ..., 'inputs': ..., "
        "'reference': ...}",
    )
    command.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_method(command)
    _add_conditions(command)
    _add_outcome(command)
    return command


def _add_method(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", choices=METHOD_NAMES, default="auto")
    command.add_argument("--eps", type=float, metavar="STEP", help="step of the difference; by default adapted")
    command.add_argument(
        "--tolerance", type=float, help="largest relative error that passes (1e-5; with --dtype float32 1e-3)"
    )
    command.add_argument(
        "--order", type=int, choices=(1, 2), default=1, help="2: the double backward (1: the gradient)"
    )
    command.add_argument("--include", action="append", metavar="GLOB", help="check these parameters only; repeatable")
    command.add_argument("--exclude", action="append", metavar="GLOB", help="leave these out; repeatable")


def _add_conditions(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mode", choices=MODES, default="eval")
    command.add_argument("--dtype", choices=[name_of(dtype) for dtype in DTYPES], default=name_of(DTYPES[0]))
    command.add_argument(
        "--seed", type=_seed, default=0, help="of what is drawn at random, FUNCTION's weights included (0)"
    )
    command.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="a bar; by default for long work on a terminal"
    )
    command.add_argument(
        "--perturb",
        type=float,
        metavar="SIZE",
        default=0.0,
        help="check at θ plus so many standard deviations of noise",
    )
    command.add_argument(
        "--hold-detached",
        action="store_true",
        help="hold what passes through detach(), .data or no_grad at its value, as a stop-gradient means it",
    )


def _add_outcome(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--strict", action="store_true", help="exit 3 where a checked parameter is flat, unused or undecided"
    )
    for suffix, file_format in FORMATS.items():
        command.add_argument(
            f"--{suffix}",
            type=Path,
            metavar="PATH",
            help=f"write it as {file_format.name} too; -: to standard output",
        )


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {MAX_SEED}")
    return value
