"""A test that takes the fixture and checks nothing is told at the end, and fails where the session is strict."""

from __future__ import annotations

import json

import pytest

from torch_gradcheck.pytest_plugin.options import Settings
from torch_gradcheck.pytest_plugin.session import GradcheckSession
from torch_gradcheck.pytest_plugin.unused import ATTRIBUTE, told

UNUSED = """
import pytest


def test_forgets(gradcheck):
    pass


def test_has_an_if(gradcheck):
    if X.is_cuda:
        gradcheck(linear(), loss, X)


def test_checks(gradcheck):
    gradcheck(linear(), loss, X)


def test_is_refused(gradcheck):
    with pytest.raises(torch_gradcheck.InvalidRequestError):
        gradcheck(linear(), loss, X, mode="sideways")


def test_skips(gradcheck):
    pytest.skip("no GPU")


@pytest.mark.xfail
def test_fails_before(gradcheck):
    assert X.is_cuda


@pytest.fixture
def check(gradcheck):
    return lambda: gradcheck(linear(), loss, X)


def test_by_way_of_another(check):
    pass


class TestOfAClass:
    @pytest.fixture(autouse=True)
    def keep(self, gradcheck):
        self.gradcheck = gradcheck

    def test_of_other_things(self):
        pass


@pytest.mark.gradcheck(strict=False)
def test_on_purpose(gradcheck):
    pass
"""

TOLD = "gradcheck: 3 tests took gradcheck and checked nothing: *::test_forgets, *::test_has_an_if, *::test_on_purpose"


def test_it_is_told_at_the_end(run):
    result = run(UNUSED)

    result.assert_outcomes(passed=7, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["gradcheck: 2 checks; *", TOLD])


def test_it_fails_where_the_session_is_strict(run):
    result = run(UNUSED, "--gradcheck-strict")

    result.assert_outcomes(passed=5, failed=2, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "checked nothing: the test took gradcheck and never called it; have it do so, or take the argument away",
            TOLD,
            "FAILED *::test_forgets - checked nothing: *",
            "FAILED *::test_has_an_if - *",
        ]
    )


def test_it_fails_at_the_line_of_the_test(run):
    result = run("def test_it(gradcheck): pass", "--gradcheck-strict", "--tb=line")

    result.stdout.fnmatch_lines(["test_made.py:19: checked nothing: *"])
    assert "unused.py" not in result.stdout.str()


def test_the_marker_makes_one_test_strict(run):
    result = run("@pytest.mark.gradcheck(strict=True)\ndef test_it(gradcheck): pass")

    result.assert_outcomes(failed=1)


def test_few_are_named(pytestconfig):
    tests = [f"test_a.py::test_{k}" for k in range(5)]

    assert told(tests[:1], False) == "gradcheck: 1 test took gradcheck and checked nothing: test_a.py::test_0"
    assert told(tests, False).endswith(": test_a.py::test_0, test_a.py::test_1, test_a.py::test_2 and 2 more")
    assert told(tests, True).endswith(", test_a.py::test_3, test_a.py::test_4")


@pytest.mark.parametrize(("outcome", "is_told"), [("passed", True), ("rerun", False)])
def test_workers_send_it(pytestconfig, outcome, is_told):
    facts = {"nodeid": "test_a.py::test", "location": ("", 0, ""), "keywords": {}, "longrepr": None, "when": "call"}
    report = pytest.TestReport(outcome=outcome, **facts)
    setattr(report, ATTRIBUTE, True)
    sent = pytestconfig.hook.pytest_report_to_serializable(config=pytestconfig, report=report)
    arrived = pytestconfig.hook.pytest_report_from_serializable(config=pytestconfig, data=json.loads(json.dumps(sent)))
    session = GradcheckSession(pytestconfig, Settings())

    session.pytest_runtest_logreport(arrived)

    assert bool(session._lines()) is is_told
