"""Tests that took the fixture `gradcheck` and passed without a check: they prove nothing of gradients."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest

from torch_gradcheck.pytest_plugin.fixture import GradcheckFixture

FIXTURE = "gradcheck"

ATTRIBUTE = "gradcheck_unused"
"""Of a test report of pytest: whether its test took the fixture and checked nothing."""

UNUSED = pytest.StashKey[bool]()
"""Of a test: the same, from its end until its report is made."""

ADVICE = "checked nothing: the test took gradcheck and never called it; have it do so, or take the argument away"
"""What a strict test fails with."""

NAMED = 3
"""Tests in one line; the others are counted."""


def notice(item: pytest.Item, strict: bool) -> None:
    """Notes of a test that has come to its end whether it has checked nothing; fails it then where it is `strict`.

    Raises:
        pytest.fail.Exception: it is strict, and has checked nothing.
    """
    if not _has_checked_nothing(item):
        return
    item.stash[UNUSED] = True
    if _is_strict(item, strict):
        pytest.fail(ADVICE, pytrace=False)


def mark(item: pytest.Item, report: pytest.TestReport) -> None:
    """Has a test report say that its test has checked nothing and, where that has failed it, at which line."""
    if not item.stash.get(UNUSED, False):
        return
    del item.stash[UNUSED]
    setattr(report, ATTRIBUTE, True)
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        file, line, _ = item.location
        crash.path, crash.lineno, crash.message = file, (line or 0) + 1, ADVICE


def is_marked(report: pytest.TestReport) -> bool:
    """Whether the test of a report took the fixture and checked nothing."""
    return bool(getattr(report, ATTRIBUTE, False))


def told(tests: Sequence[str], all_of_them: bool) -> str:
    """The line on these tests, by their ids."""
    names = tests if all_of_them else tests[:NAMED]
    more = f" and {len(tests) - len(names)} more" if len(names) < len(tests) else ""
    return (
        f"gradcheck: {len(tests):,} test{'s' * (len(tests) != 1)} took gradcheck and checked nothing: "
        f"{', '.join(names)}{more}"
    )


def _has_checked_nothing(item: pytest.Item) -> bool:
    """Whether a test has the fixture as an argument of its own, and has not called it.

    One that gets it by way of another fixture may be one of many that share this.
    """
    function = getattr(item, "function", None)
    fixture = getattr(item, "funcargs", {}).get(FIXTURE)
    if function is None or not isinstance(fixture, GradcheckFixture) or fixture.is_used:
        return False
    return FIXTURE in inspect.signature(function).parameters


def _is_strict(item: pytest.Item, strict: bool) -> bool:
    """What the closest marker says of `strict`, else what the session does."""
    said = [marker.kwargs["strict"] for marker in item.iter_markers("gradcheck") if "strict" in marker.kwargs]
    return bool(said[0]) if said else strict
