"""The plugin that pytest loads: the fixture `gradcheck`, its options, and what is told at the end.

Neither torch nor anything else that is large is imported before a test uses the fixture.

PYTEST_DONT_REWRITE: there are no assertions here, and a process that runs several sessions has it already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import pytest

from torch_gradcheck.pytest_plugin.comparison import differences
from torch_gradcheck.pytest_plugin.failure import in_one_line, of_test, say, show, terminal_of
from torch_gradcheck.pytest_plugin.fixture import FAILURES, OUTCOMES, GradcheckFixture
from torch_gradcheck.pytest_plugin.frames import FrameFilter
from torch_gradcheck.pytest_plugin.options import MARKER, Settings, add_options, refuse_unknown_words, settings_of
from torch_gradcheck.pytest_plugin.outcome import attach
from torch_gradcheck.pytest_plugin.session import GradcheckSession
from torch_gradcheck.pytest_plugin.unused import FIXTURE, mark, notice
from torch_gradcheck.tracebacks import show_all_frames

__all__ = ["GradcheckFixture", "gradcheck"]

SETTINGS = pytest.StashKey[Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--gradcheck-strict`, `--gradcheck-report` and `--gradcheck-seed`, and the keys of the ini file."""
    add_options(parser)


@pytest.hookimpl(trylast=True)  # behind all that adds options
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Refuses what looks like an option of ours and is none, with the closest one that there is."""
    refuse_unknown_words(parser, args)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker and, in the process that prints, what tells the outcomes at the end."""
    config.addinivalue_line("markers", MARKER)
    settings = config.stash[SETTINGS] = settings_of(config)
    if settings.shows_all_frames:
        config.add_cleanup(show_all_frames())
    else:
        config.pluginmanager.register(FrameFilter(), "torch_gradcheck_frames")
    if settings.directory is not None:
        config.option.gradcheck_report = str(settings.directory)  # workers of xdist may start in another directory
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(GradcheckSession(config, settings), "torch_gradcheck_session")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test that uses the fixture, so that `-m gradcheck` selects it."""
    for item in items:
        if FIXTURE in getattr(item, "fixturenames", ()) and item.get_closest_marker("gradcheck") is None:
            item.add_marker("gradcheck")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker of xdist on what terminal its failures are shown."""
    node.workerinput["gradcheck_terminal"] = astuple(terminal_of(node.config))


@pytest.fixture
def gradcheck(request: pytest.FixtureRequest) -> GradcheckFixture:
    """Checks gradients: gradcheck(model, loss_fn, batch, **options), .closure(...), .function(...).

    Fails the test with the table where one is wrong, and returns the report where none is.
    """
    return GradcheckFixture(request.node, request.config.stash[SETTINGS])


@pytest.hookimpl(trylast=True)  # behind the test, and only if that has come to its end
def pytest_runtest_call(item: pytest.Item) -> None:
    """Notices a test that took the fixture and has checked nothing; where that is strict, it fails."""
    notice(item, item.config.stash[SETTINGS].strict)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Shows a failed check by its outcome and the table, and has the report carry what was found."""
    failures = item.stash.get(FAILURES, [])
    # a TestCase keeps its error to itself until pytest makes the report
    with in_one_line(failures if call.excinfo is None else of_test(failures, call.excinfo)):
        outcome: Any = yield
    report = outcome.get_result()
    attach(item.stash.setdefault(OUTCOMES, []), report)
    mark(item, report)
    if call.excinfo is not None:
        if item.config.getoption("tbstyle", "auto") != "line":
            show(of_test(failures, call.excinfo), report, terminal_of(item.config))
        say(call.excinfo.value, failures, report)
    if call.when == "teardown":
        failures.clear()  # tracebacks keep alive what the test has made


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Says what is different where two reports are compared by `assert`."""
    return differences(op, left, right)
