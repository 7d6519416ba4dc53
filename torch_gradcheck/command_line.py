"""The command `torch-gradcheck FILE.py:FUNCTION`: checks what FUNCTION() returns, and exits 0, 1, 2 or 3."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from torch_gradcheck.check import check_function, check_module
from torch_gradcheck.errors import GradcheckError, InvalidRequestError
from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.render.formats import FORMATS
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import close_names, listed
from torch_gradcheck.request import DTYPES, MAX_SEED, MODES
from torch_gradcheck.version import __version__

PASSED, MISMATCH, COULD_NOT_CHECK, NOT_PROVEN = 0, 1, 2, 3

OF_BOTH = ("eps", "tolerance", "seed", "progress", "order", "hold_detached")
"""The options that the check of a function has as well, besides the precision."""

OF_A_MODEL = ("method", "include", "exclude", "mode", "perturb")
"""The options that only the check of a model has."""

FUNCTION_ARGUMENTS = ("function", "inputs", "reference")
MODEL_ARGUMENTS = ("model", "loss_fn", "batch", "reference")
"""What FUNCTION() returns, in this order or by these names; the reference may be left out."""

DESCRIPTION = "Checks the gradients of a PyTorch model, or a function of tensors, against float64 centered differences."

EPILOG = (
    "Exit status: 0 passed, 1 a gradient is wrong, that of a reference too, or the contract of a function broken, 2 it "
    "could not be checked, 3 nothing is wrong and no gradient is proven right (with --strict: not every one is)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: the words behind the command's name; None takes them from the shell.
    """
    options = _parser().parse_args(arguments)
    try:
        files = {suffix: path for suffix in FORMATS if (path := getattr(options, suffix)) is not None}
        _refuse_unwritable(files.values())
        report = _checked(options)
        _print(str(report))
        for suffix, path in files.items():
            path.write_text(FORMATS[suffix].write(report, options.target), encoding="utf-8")
    except (GradcheckError, OSError) as error:
        return _could_not_check(str(error))
    except KeyboardInterrupt:
        return _could_not_check("interrupted")
    except (Exception, SystemExit) as error:  # of the user's own code: it is shown, and is no verdict
        traceback.print_exception(error)
        return _could_not_check(f"{options.target} ended in {type(error).__name__}")
    return _exit_status(report, options.strict)


def _exit_status(report: Report, strict: bool) -> int:
    if report.mismatches or report.broken or report.has_wrong_reference:
        return MISMATCH
    return PASSED if (report.proven if strict else report.passed) else NOT_PROVEN


def _could_not_check(why: str) -> int:
    print(f"torch-gradcheck: {why}", file=sys.stderr)
    return COULD_NOT_CHECK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torch-gradcheck", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "target",
        metavar="FILE.py:FUNCTION",
        help="or package.module:FUNCTION; FUNCTION() returns (model, loss_fn, batch) or, for check_function, "
        "(function, inputs); a reference behind these, or a mapping of the names, as {'function': ..., 'inputs': ..., "
        "'reference': ...}",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--method", choices=METHOD_NAMES, default="auto")
    parser.add_argument("--eps", type=float, metavar="STEP", help="step of the difference; by default adapted")
    parser.add_argument(
        "--tolerance", type=float, help="largest relative error that passes (1e-5; with --dtype float32 1e-3)"
    )
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help="2: the double backward (1: the gradient)")
    parser.add_argument("--include", action="append", metavar="GLOB", help="check these parameters only; repeatable")
    parser.add_argument("--exclude", action="append", metavar="GLOB", help="leave these out; repeatable")
    parser.add_argument("--mode", choices=MODES, default="eval")
    parser.add_argument("--dtype", choices=[name_of(dtype) for dtype in DTYPES], default=name_of(DTYPES[0]))
    parser.add_argument(
        "--seed", type=_seed, default=0, help="of what is drawn at random, FUNCTION's weights included (0)"
    )
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="a bar; by default for long work on a terminal"
    )
    parser.add_argument(
        "--perturb",
        type=float,
        metavar="SIZE",
        default=0.0,
        help="check at θ plus so many standard deviations of noise",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit 3 where a checked parameter is flat, unused or undecided"
    )
    parser.add_argument(
        "--hold-detached",
        action="store_true",
        help="hold what passes through detach(), .data or no_grad at its value, as a stop-gradient means it",
    )
    for suffix, file_format in FORMATS.items():
        parser.add_argument(
            f"--{suffix}", type=Path, metavar="PATH", help=f"write the report as {file_format.name} too"
        )
    return parser


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {MAX_SEED}")
    return value


def _checked(options: argparse.Namespace) -> Report:
    torch.manual_seed(options.seed)
    problem = _problem(options.target)
    if "function" not in problem:
        return check_module(**problem, **_chosen(options, (*OF_BOTH, *OF_A_MODEL)))
    given = [name for name in OF_A_MODEL if getattr(options, name) != _parser().get_default(name)]
    if given:
        raise InvalidRequestError(
            f"{options.target}() returned (function, inputs), and {listed([f'--{name}' for name in given])} "
            f"{'is' if len(given) == 1 else 'are'} for models: leave out, or return (model, loss_fn, batch)."
        )
    return check_function(**problem, **_chosen(options, OF_BOTH))


def _chosen(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options of these names, and the precision, as a check takes them."""
    return {name: getattr(options, name) for name in names} | {"dtype": getattr(torch, options.dtype)}


def _problem(target: str) -> dict[str, Any]:
    """Returns what the target's function gives a check, by the names of the arguments.

    Raises:
        InvalidRequestError: there is no such function, or it returns something else.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise InvalidRequestError(f"{target!r} is not of the form FILE.py:FUNCTION or package.module:FUNCTION.")
    result = _function(where, name)()
    if isinstance(result, Mapping):
        return _named(target, result)
    if isinstance(result, tuple | list):
        for names in (FUNCTION_ARGUMENTS, MODEL_ARGUMENTS):
            fits = len(names) - 1 <= len(result) <= len(names)
            if fits and isinstance(result[1], tuple | list | Mapping) == (names is FUNCTION_ARGUMENTS):
                return dict(zip(names, result, strict=False))
    raise InvalidRequestError(
        f"{target}() must return (model, loss_fn, batch) or (function, inputs), got {type(result).__name__}"
        f"{f' of {len(result)}' if isinstance(result, tuple | list) else ''}. Inputs are a tuple of positional "
        "arguments, (x,) for one, or a mapping of keyword arguments. A reference stands behind either."
    )


def _named(target: str, problem: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that the target's function returned; raises unless its keys are the arguments of a check."""
    for names in (FUNCTION_ARGUMENTS, MODEL_ARGUMENTS):
        if set(names[:-1]) <= set(problem) <= set(names):
            return dict(problem)
    raise InvalidRequestError(
        f"{target}() returned a mapping of {list(problem)}: its keys must be {list(MODEL_ARGUMENTS)} or "
        f"{list(FUNCTION_ARGUMENTS)}; 'reference' may be left out."
    )


def _function(where: str, name: str) -> Callable[[], Any]:
    module = _module_in_file(Path(where)) if where.endswith(".py") else _module_by_name(where)
    found = getattr(module, name, None)
    if not callable(found):
        functions = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")
        ]
        own = [key for key in functions if vars(module)[key].__module__ == module.__name__]
        raise InvalidRequestError(f"{where} has no function {name!r}; {close_names(name, own or functions)}")
    return found  # type: ignore[no-any-return]


def _module_in_file(path: Path) -> ModuleType:
    if not path.stem or not path.is_file():
        raise InvalidRequestError(f"there is no file {path} in {Path.cwd()}.")
    sys.path.insert(0, str(path.resolve().parent))  # the file's own imports, as when it is run as a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidRequestError(f"{path} cannot be loaded as a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _module_by_name(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InvalidRequestError(f"{name!r} is neither a file that ends in .py nor the name of a module.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a missing import of the user's module, not the module itself
        raise InvalidRequestError(f"there is no module {name!r} ({error}); a file is named with its .py.") from error


def _refuse_unwritable(paths: Iterable[Path]) -> None:
    """Raises before the check, which may take long, if a report could not be written after it."""
    for path in paths:
        if path.is_dir() or not path.parent.is_dir():
            why = "it is a directory" if path.is_dir() else f"there is no directory {path.parent}"
            raise InvalidRequestError(f"the report cannot be written to {path}: {why}.")


def _print(text: str) -> None:
    """Prints, with "?" for letters that the terminal's encoding lacks. A pipe that is closed early is no error."""
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
