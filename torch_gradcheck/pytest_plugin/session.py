"""What all checks of a session have found: counted for the terminal, and listed in the directory of reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import pytest

from torch_gradcheck.pytest_plugin.failure import colour, cuts_lines, shorten
from torch_gradcheck.pytest_plugin.options import Settings
from torch_gradcheck.pytest_plugin.outcome import Outcome, attached, named
from torch_gradcheck.pytest_plugin.report_files import write_index
from torch_gradcheck.pytest_plugin.unused import is_marked, told

NARROWEST = 20
"""Columns that what is told has at least."""


class GradcheckSession:
    """A plugin that collects the outcomes of all tests, and tells them at the end.

    It lives in the process that prints. Workers of xdist send it the outcomes with the reports of their tests.
    """

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._by_test: dict[tuple[str, str], list[Outcome]] = {}
        self._unused: set[tuple[str, str]] = set()
        self._about_files: list[str] = []

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes, in the order of the tests' ids: that in which workers finish is another one every time."""
        found = [outcome for outcomes in self._by_test.values() for outcome in outcomes]
        return sorted(found, key=lambda outcome: (outcome.test, outcome.number))

    def pytest_sessionstart(self) -> None:
        """Makes the directory of the reports; raises `pytest.UsageError`, before any check, where it cannot be made."""
        if self._settings.directory is None or self._config.getoption("collectonly", False):
            return
        try:
            self._settings.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(
                f"reports cannot be written to {self._settings.directory}, the directory of --gradcheck-report or "
                f"gradcheck_report: {error.strerror or error}."
            ) from error

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes what the test has found; what an attempt that is run again has found does not count."""
        key = (getattr(report, "worker_id", ""), report.nodeid)
        self._by_test.setdefault(key, []).extend(attached(report))
        if is_marked(report):
            self._unused.add(key)
        if str(report.outcome) == "rerun":  # a word of pytest-rerunfailures
            del self._by_test[key]
            self._unused.discard(key)

    def pytest_sessionfinish(self) -> None:
        """Writes the index, and colours the tables that the terminal is about to show."""
        if self._settings.directory is not None and self.outcomes:
            self._about_files.append(_written(self.outcomes, self._settings.directory))
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        for reports in [] if terminal is None else terminal.stats.values():
            for report in reports:
                colour(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Says what the checks have found, with -v each on a line; nothing where no test has taken the fixture.

        Tracebacks have been shown by now and the short summary has not: it gets as many words as fit.
        """
        if not (self.outcomes or self._unused):
            return
        reports = [report for reports in terminalreporter.stats.values() for report in reports]
        told = self._told(shorten(reports, self._config))
        terminalreporter.ensure_newline()
        for line in [*(line for outcome in told for line in self._told_of(outcome)), *self._lines()]:
            terminalreporter.write_line(line)

    def _told_of(self, outcome: Outcome) -> list[str]:
        """What is told of one check: a line or, where that is too long for the terminal, its test and lines below."""
        test = f"gradcheck: {named(outcome)}:"
        width = self._config.get_terminal_writer().fullwidth
        if len(f"{test} {outcome.said}") <= width or not cuts_lines(self._config):
            return [f"{test} {outcome.said}"]
        indent = "  "
        parts = wrap(outcome.said, max(width - len(indent), NARROWEST), break_long_words=False, break_on_hyphens=False)
        return [test, *(indent + part for part in parts)]

    def _lines(self) -> list[str]:
        """The lines on the session as a whole."""
        about_checks = [counted(self.outcomes)] if self.outcomes else []
        unused = [test for _, test in sorted(self._unused)]
        about_unused = [told(unused, self._config.getoption("verbose") > 0)] if unused else []
        return [*about_checks, *about_unused, *self._about_files]

    def _told(self, untold: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes that have a line of their own: all with -v, and failures that nothing else would say.

        Those are the ones that are `untold` in the short summary, and all of them with --tb=no.
        """
        if self._config.getoption("verbose") > 0:
            return self.outcomes
        if self._config.getoption("tbstyle", "auto") == "no":
            return [outcome for outcome in self.outcomes if not outcome.passed]
        return [outcome for outcome in self.outcomes if outcome in untold]


def _written(outcomes: Sequence[Outcome], directory: Path) -> str:
    """Writes the index; says where it is, or why there is none. A session does not end with that error."""
    try:
        return f"gradcheck: reports in {write_index(outcomes, directory).parent}"
    except OSError as error:
        return f"gradcheck: no index of the reports could be written: {error}"


def counted(outcomes: Sequence[Outcome]) -> str:
    """The outcomes counted in one line."""
    proven, not_proven, wrong, broken = (
        sum(getattr(outcome, name) for outcome in outcomes) for name in ("proven", "not_proven", "wrong", "broken")
    )
    parts = [f"{proven:,} tensor{'s' * (proven != 1)} proven", f"{not_proven:,} not proven", f"{wrong:,} wrong"]
    if broken:
        parts.append(f"{broken:,} entr{'ies' if broken > 1 else 'y'} of contracts broken")
    ended = sum(not outcome.is_report for outcome in outcomes)
    told = f"gradcheck: {len(outcomes):,} check{'s' * (len(outcomes) != 1)}; {', '.join(parts)}"
    return f"{told}; {ended:,} ended in an error" if ended else told
