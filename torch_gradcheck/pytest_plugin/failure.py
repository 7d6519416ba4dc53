"""How a check that fails its test is shown: the user's line, the outcome in one line, and the table in a section."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import torch_gradcheck
from torch_gradcheck.pytest_plugin.frames import with_examples
from torch_gradcheck.pytest_plugin.outcome import Outcome, attached
from torch_gradcheck.tracebacks import chain

SECTION = "gradcheck"
"""Title of the table below a traceback."""

COLOURED = "gradcheck_coloured"
"""Of a test report of pytest: the tables that it shows, each plain and in colour."""


@dataclass(frozen=True)
class Failure:
    """An error that the fixture has raised.

    Attributes:
        error: the error; its text is the table.
        report: what the check has found.
        said: the outcome on one line.
    """

    error: BaseException
    report: torch_gradcheck.Report
    said: str


@dataclass(frozen=True)
class Terminal:
    """Where pytest writes: how many columns, whether in colour, and in what encoding."""

    width: int = 80
    is_coloured: bool = False
    encoding: str = "utf-8"


def terminal_of(config: pytest.Config) -> Terminal:
    """The terminal of a session; that of the process which prints, where this one is a worker of xdist."""
    sent: dict[str, Any] = getattr(config, "workerinput", {})
    if "gradcheck_terminal" in sent:
        return Terminal(*sent["gradcheck_terminal"])
    if config.pluginmanager.get_plugin("terminalreporter") is None:
        return Terminal()
    writer = config.get_terminal_writer()
    encoding = getattr(sys.__stdout__, "encoding", None)  # sys.stdout is pytest's, which captures it in UTF-8
    return Terminal(writer.fullwidth, writer.hasmarkup, encoding or "utf-8")


def of_test(failures: Iterable[Failure], excinfo: pytest.ExceptionInfo[BaseException] | None) -> list[Failure]:
    """The failures that a test has ended with, or that led to its end."""
    ended = [] if excinfo is None else with_examples(excinfo.value)
    errors = [error for one in ended for error in chain(one)]
    return [failure for failure in failures if any(failure.error is error for error in errors)]


@contextmanager
def in_one_line(failures: Sequence[Failure]) -> Iterator[None]:
    """While pytest makes its report, the text of the errors is the outcome in one line and not the table."""
    texts = [failure.error.args for failure in failures]
    for failure in failures:
        failure.error.args = (failure.said,)
    try:
        yield
    finally:
        for failure, text in zip(failures, texts, strict=True):
            failure.error.args = text


def show(failures: Sequence[Failure], report: pytest.TestReport, terminal: Terminal) -> None:
    """Adds the tables to a test report, below the traceback."""
    tables = [_table(failure, terminal, color=False) for failure in failures]
    add = getattr(report.longrepr, "addsection", None)
    for table in tables:
        if add is None:
            report.sections.append((SECTION, table))
        else:
            add(SECTION, table, "-")
    if terminal.is_coloured:
        coloured = [_table(failure, terminal, color=True) for failure in failures]
        setattr(report, COLOURED, list(zip(tables, coloured, strict=True)))


def _table(failure: Failure, terminal: Terminal, color: bool) -> str:
    return failure.report.text(width=terminal.width, color=color, encoding=terminal.encoding)


def say(error: BaseException, failures: Iterable[Failure], report: pytest.TestReport) -> None:
    """Puts an error of this package on one line of the short summary: what it says, and not the path of its class."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None or not isinstance(error, torch_gradcheck.GradcheckError):
        return
    first_line = f"{type(error).__name__}: {error}".partition("\n")[0]
    crash.message = next((failure.said for failure in failures if failure.error is error), first_line)


def colour(report: object) -> None:
    """Has a test report show its tables in colour. Until now they were plain, for files that others make of it."""
    coloured = dict(getattr(report, COLOURED, ()))
    sections = getattr(getattr(report, "longrepr", None), "sections", None)
    if coloured and sections:
        sections[:] = [(name, coloured.get(text, text), separator) for name, text, separator in sections]


def shorten(reports: Iterable[object], config: pytest.Config) -> list[Outcome]:
    """Has the short summary say of failed checks what fits on a line, where pytest would cut the culprit off.

    Returns those of which no line has room for what is wrong and the culprit, so that they have to be told elsewhere.
    """
    untold = []
    for report in [report for report in reports if isinstance(report, pytest.TestReport)]:
        crash = getattr(report.longrepr, "reprcrash", None)
        if crash is None:  # that of a doctest, which has a line without a message
            untold += [outcome for outcome in attached(report) if report.failed and outcome.said in report.longreprtext]
        elif cuts_lines(config):
            room = config.get_terminal_writer().fullwidth - len(_before(report, config))
            shown = [outcome for outcome in attached(report) if outcome.said == crash.message]
            crash.message = shown[0].within(room) if shown else crash.message
            untold += [outcome for outcome in shown if report.failed and not outcome.has_room(room)]
    return untold


def _before(report: pytest.TestReport, config: pytest.Config) -> str:
    """What stands before the message on a line of the short summary: "FAILED test_net.py::test_it - "."""
    relative: Any = config.cwd_relative_nodeid  # its types are other ones in each version
    _, _, word = config.hook.pytest_report_teststatus(report=report, config=config)
    return f"{word if isinstance(word, str) else word[0]} {relative(report.nodeid)} - "


def cuts_lines(config: pytest.Config) -> bool:
    """Whether pytest cuts a line of its short summary where the terminal ends, and not in CI or with -vv."""
    is_in_ci = any(os.environ.get(name) for name in ("CI", "BUILD_NUMBER"))
    return config.getoption("force_short_summary", False) or not (is_in_ci or config.getoption("verbose") > 1)
