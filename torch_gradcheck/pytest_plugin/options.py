"""What a user can set: options of the command line, keys of the ini file, keywords of the marker, and which one counts.

What stands nearer to a check knows more about it. So a keyword of the call counts before one of the marker, that of a
function before that of its class or module, and these before the command line, which speaks of a whole session. The
command line counts before the ini file, as everywhere in pytest, and this before the defaults of `check_module`.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

import torch_gradcheck
from torch_gradcheck.tracebacks import shows_all_frames

T = TypeVar("T")

MARKER = (
    "gradcheck(**options): keywords of check_module, and strict, that the fixture `gradcheck` takes in this test where "
    "a call does not give them"
)

MODES = ("eval", "train", "keep")

MAX_SEED = 2**63 - 1

SEEDS = f"an integer from 0 to {MAX_SEED}"
TOLERANCES = "a number above 0 and below 1"
"""What seeds and tolerances may be, in words."""

ARGUMENTS = {"model", "loss_fn", "batch", "closure", "function", "inputs"}
"""What a check is called with; all other parameters of the three checks are options."""

DEFAULTS = {"progress": False}
"""Where a test has other defaults than a check: a bar would run through what pytest prints."""

INTEGER: Literal["int", "string"] = "int" if pytest.version_tuple >= (8, 4) else "string"
FLOAT: Literal["float", "string"] = "float" if pytest.version_tuple >= (8, 4) else "string"
"""Types of keys of the ini file; before pytest 8.4 numbers are text."""


@dataclass(frozen=True)
class Settings:
    """What holds for a whole session.

    Attributes:
        strict: a test fails where a checked gradient is not proven right.
        options: the options of checks that were set, by name: `seed`, `tolerance`, `mode`.
        directory: where reports are written; None: nowhere.
        shows_all_frames: tracebacks are shown whole, with the frames of this package.
    """

    strict: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    shows_all_frames: bool = False


def add_options(parser: pytest.Parser) -> None:
    """Adds the options of the command line, and the keys of the ini file."""
    group = parser.getgroup("gradcheck", "gradients checked by torch_gradcheck")
    group.addoption(
        "--gradcheck-strict", action="store_true", help="fail where a checked gradient is flat, unused or undecided too"
    )
    group.addoption(
        "--gradcheck-report", metavar="DIR", help="write each check as a page and as JSON to DIR, and DIR/index.html"
    )
    group.addoption("--gradcheck-seed", type=_seed, metavar="N", help="seed of the checks: an integer from 0 on (0)")
    parser.addini("gradcheck_strict", "as --gradcheck-strict", type="bool", default=False)
    parser.addini("gradcheck_report", "as --gradcheck-report, beside the ini file", type="string", default="")
    parser.addini("gradcheck_seed", "as --gradcheck-seed", type=INTEGER, default=None)
    parser.addini(
        "gradcheck_tolerance",
        "the largest relative error that passes: above 0 and below 1 (1e-5)",
        type=FLOAT,
        default=None,
    )
    parser.addini("gradcheck_mode", "eval (the default), train or keep", type="string", default="")


def refuse_unknown_words(parser: pytest.Parser, words: Iterable[str]) -> None:
    """Raises `pytest.UsageError` where a word of the command line begins like our options and is none of anybody's."""
    _, unknown = parser.parse_known_and_unknown_args(list(words))
    for name in (word.partition("=")[0] for word in unknown if word.startswith("--gradcheck")):
        known = ("--gradcheck-report", "--gradcheck-seed", "--gradcheck-strict")
        raise pytest.UsageError(f"there is no option {name}{closest(name, known)} There are: {', '.join(known)}.")


def settings_of(config: pytest.Config) -> Settings:
    """The settings of a session; raises `pytest.UsageError` where one cannot be used."""
    seed = config.getoption("gradcheck_seed")
    options = {
        "seed": _set(config, "gradcheck_seed", SEEDS, _seed) if seed is None else seed,
        "tolerance": _set(config, "gradcheck_tolerance", TOLERANCES, _tolerance),
        "mode": _mode(config),
    }
    return Settings(
        strict=config.getoption("gradcheck_strict") or _set(config, "gradcheck_strict", "true or false", bool) or False,
        options={name: value for name, value in options.items() if value is not None},
        directory=_directory(config),
        shows_all_frames=config.getoption("fulltrace", False) or shows_all_frames(),
    )


def _seed(text: object) -> int:
    """A seed as a user writes it; raises where it is none, with what the command line says of it."""
    try:
        seed = int(str(text))
    except ValueError:
        seed = -1
    if not 0 <= seed <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be {SEEDS}, got {text!r}")
    return seed


def _tolerance(value: Any) -> float:
    if not 0 < float(value) < 1:
        raise ValueError(f"got {value!r}")
    return float(value)


def _set(config: pytest.Config, key: str, allowed: str, read: Callable[[Any], T]) -> T | None:
    """What a key of the ini file is set to, None where it is not."""
    try:
        value = config.getini(key)
        return None if value in (None, "", []) else read(value)  # by version
    except (TypeError, ValueError, pytest.UsageError, argparse.ArgumentTypeError) as error:  # by version
        said = str(error).removeprefix(f"must be {allowed}, ")
        raise pytest.UsageError(f"{key} must be {allowed}: {said}.") from None


def _mode(config: pytest.Config) -> str | None:
    mode = str(config.getini("gradcheck_mode"))
    if mode and mode not in MODES:
        raise pytest.UsageError(f"gradcheck_mode must be one of {', '.join(MODES)}, got {mode!r}{closest(mode, MODES)}")
    return mode or None


def _directory(config: pytest.Config) -> Path | None:
    """The directory of reports: of the command line from where pytest was started, of the ini file from beside it."""
    given, key = config.getoption("gradcheck_report"), str(_set(config, "gradcheck_report", "a directory", str) or "")
    beside = config.rootpath if config.inipath is None else config.inipath.parent
    if given is None and not key:
        return None
    name = "gradcheck_report" if given is None else "--gradcheck-report"
    if given == "":
        raise pytest.UsageError(f"{name} must name a directory, got ''.")
    directory = beside / key if given is None else config.invocation_params.dir / given
    file = next((path for path in (directory, *directory.parents) if path.is_file()), None)
    if file is not None:
        raise pytest.UsageError(f"{name} must name a directory, got {str(given or key)!r}: {file} is a file.")
    return directory


@dataclass(frozen=True)
class Asked:
    """What is asked of one check: the options that it is called with, and whether all must be proven."""

    options: dict[str, Any]
    strict: bool


def asked(check: Callable[..., Any], given: Mapping[str, Any], node: pytest.Item, settings: Settings) -> Asked:
    """What is asked of a call of `check` with the keywords `given`, in the test `node`.

    A keyword of the marker or of the session that this check does not have, as `mode` of a function, is left out.

    Raises:
        InvalidRequestError: there is no such keyword of the call, or of the marker for any check.
    """
    own = _options_of(check)
    _refuse_unknown(given, own, "gradcheck was called with")
    options = {**DEFAULTS, **settings.options, **_of_markers(node), **given}
    strict = options.pop("strict", settings.strict)
    if not isinstance(strict, bool):
        raise torch_gradcheck.InvalidRequestError(f"strict must be True or False, got {strict!r}.")
    return Asked({name: value for name, value in options.items() if name in own}, strict)


def _of_markers(node: pytest.Item) -> dict[str, Any]:
    """The keywords of the markers of a test, the closest one's before others."""
    known = _options_of(torch_gradcheck.check_module) | _options_of(torch_gradcheck.check_function)
    options: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("gradcheck"))):
        if marker.args:
            shown = ", ".join(map(repr, marker.args))
            raise torch_gradcheck.InvalidRequestError(
                f"@pytest.mark.gradcheck({shown}) takes keywords only, such as mode='train'; there are: "
                f"{', '.join(sorted(known))}."
            )
        _refuse_unknown(marker.kwargs, known, "@pytest.mark.gradcheck has")
        _refuse_mode(marker.kwargs.get("mode", MODES[0]))
        options.update(marker.kwargs)
    return options


def _refuse_mode(mode: object) -> None:
    """Raises where the mode of a marker is none, also where the check has no mode and would leave it out."""
    if mode not in MODES:
        near = closest(str(mode), MODES)
        raise torch_gradcheck.InvalidRequestError(
            f"mode of @pytest.mark.gradcheck must be one of {', '.join(map(repr, MODES))}, got {mode!r}{near}"
        )


def _options_of(check: Callable[..., Any]) -> set[str]:
    return ({*inspect.signature(check).parameters} - ARGUMENTS) | {"strict"}


def _refuse_unknown(given: Mapping[str, Any], known: set[str], whose: str) -> None:
    """Raises where a keyword is not known; names the closest, and all there are."""
    for name in sorted(given.keys() - known):
        raise torch_gradcheck.InvalidRequestError(
            f"{whose} an unknown option {name!r}{closest(name, known)} There are: {', '.join(sorted(known))}."
        )


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on a name that there is not: "; did you mean 'seed'?", or "." where none is close."""
    close = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
