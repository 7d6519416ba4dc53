"""The line at the end counts what all checks of a session found, wherever they ran."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import torch_gradcheck
from tests.pytest_plugin.conftest import MADE
from tests.pytest_plugin.loading import PLUGIN
from torch_gradcheck.pytest_plugin.options import Settings
from torch_gradcheck.pytest_plugin.outcome import Outcome, attach, beginning, outcome_of, shorter_forms
from torch_gradcheck.pytest_plugin.session import GradcheckSession, counted

RIGHT = Outcome("test_a.py::test", 1, "gradients right", passed=True, proven=2)

SEVERAL = """
def test_right(gradcheck):
    gradcheck(linear(), loss, X)


def test_unused(gradcheck):
    layer = linear()
    layer.register_parameter("spare", nn.Parameter(torch.ones(1)))
    layer.register_parameter("frozen", nn.Parameter(torch.ones(1), requires_grad=False))
    gradcheck(layer, loss, X)


def test_expected(gradcheck):
    with pytest.raises(GradientMismatchError):
        gradcheck(linear(), loss, X, gradients=NOTHING)


@pytest.mark.xfail
def test_xfail(gradcheck):
    gradcheck(linear(), loss, X, gradients=NOTHING)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad.mul_(2 * ctx.saved_tensors[0])  # writes to what it is given


def test_contract(gradcheck):
    gradcheck.function(Square.apply, (X.double(),))
"""

COUNTED = "gradcheck: 5 checks; 5 tensors proven, 1 not proven, 4 wrong, 2 entries of contracts broken"


def test_the_line_counts_checks_and_tensors(run):
    result = run(SEVERAL)

    result.stdout.fnmatch_lines(
        ["gradcheck: 5 checks; 5 tensors proven, 1 not proven, 4 wrong, 2 entries of contracts broken"]
    )


def test_nothing_is_said_where_no_test_has_taken_the_fixture(run):
    result = run("def test_it(): pass")

    assert "gradcheck:" not in result.stdout.str()


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([RIGHT], "gradcheck: 1 check; 2 tensors proven, 0 not proven, 0 wrong"),
        (
            [RIGHT, replace(RIGHT, proven=0, not_proven=1, wrong=1200, passed=False)],
            "gradcheck: 2 checks; 2 tensors proven, 1 not proven, 1,200 wrong",
        ),
        (
            [replace(RIGHT, proven=1, broken=1), replace(RIGHT, proven=0, is_report=False)],
            "gradcheck: 2 checks; 1 tensor proven, 0 not proven, 0 wrong, 1 entry of contracts broken; 1 ended in "
            "an error",
        ),
    ],
    ids=["one", "wrong", "broken"],
)
def test_counted(outcomes, said):
    assert counted(outcomes) == said


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (99, "gradients WRONG in 2 of 4 rows; culprit: 1, in the backward of Swish at net.py:13"),
        (80, "gradients WRONG in 2 of 4 rows; culprit: 1, at net.py:13"),
        (50, "gradients WRONG in 2 of 4 rows; culprit: 1"),
        (41, "gradients WRONG; culprit: 1, at net.py:13"),
        (30, "gradients WRONG; culprit: 1"),
        (24, "culprit: 1, at net.py:13"),
        (10, "culprit: 1"),
        (9, "gradients WRONG in 2 of 4 rows; culprit: 1, in the backward of Swish at net.py:13"),
    ],
)
def test_the_culprit_goes_last_where_there_is_less_room(columns, words):
    headline, culprit, place = (
        "gradients WRONG in 2 of 4 rows",
        "; culprit: 1",
        ", in the backward of Swish at net.py:13",
    )
    shorter = shorter_forms(headline, culprit, place)

    assert Outcome("", 1, headline + culprit + place, passed=False, shorter=shorter).within(columns) == words


@pytest.mark.parametrize(
    ("headline", "words"),
    [
        ("gradients WRONG in 2 of 4 parameters, 1 unused", "gradients WRONG"),
        ("the REFERENCE is WRONG in 1 of 2 arguments, gradients WRONG in 1 of 2 arguments", "the REFERENCE is WRONG"),
        ("the backward is NOT ONE FUNCTION, 1 of 2 parameters right", "the backward is NOT ONE FUNCTION"),
        ("gradients right in bfloat16: 1 of 1 argument, output WRONG", None),
        ("gradients right: 1 of 1 argument, contract BROKEN in 1 of 9 entries: layouts", None),
    ],
    ids=["gradients", "reference", "repeated", "output", "contract"],
)
def test_a_headline_is_never_cut_to_what_is_right(headline, words):
    assert beginning(headline) == (words or headline)


def report_of(outcomes: list[Outcome], **facts: object) -> pytest.TestReport:
    facts = {"nodeid": "test_a.py::test", "location": ("", 0, ""), "keywords": {}, "longrepr": None} | facts
    report = pytest.TestReport(**({"outcome": "passed", "when": "call"} | facts))
    attach(outcomes, report)
    return report


@pytest.fixture
def session(pytestconfig: pytest.Config) -> GradcheckSession:
    return GradcheckSession(pytestconfig, Settings())


def test_what_is_run_again_counts_once(session):
    session.pytest_runtest_logreport(report_of([RIGHT], when="setup"))
    session.pytest_runtest_logreport(report_of([RIGHT], outcome="rerun"))
    session.pytest_runtest_logreport(report_of([RIGHT]))

    assert session.outcomes == [RIGHT]


def test_workers_that_run_the_same_test_count_each(session):
    for worker in ("gw0", "gw1"):
        report = report_of([RIGHT])
        report.worker_id = worker
        session.pytest_runtest_logreport(report)

    assert session.outcomes == [RIGHT, RIGHT]


def test_an_outcome_goes_from_process_to_process(pytestconfig, wrong_report):
    outcome = outcome_of(wrong_report, "test_a.py::test", 1, passed=False, file="f")
    sent = pytestconfig.hook.pytest_report_to_serializable(config=pytestconfig, report=report_of([outcome]))
    arrived = pytestconfig.hook.pytest_report_from_serializable(config=pytestconfig, data=json.loads(json.dumps(sent)))
    session = GradcheckSession(pytestconfig, Settings())

    session.pytest_runtest_logreport(arrived)

    assert session.outcomes == [outcome]
    assert (outcome.wrong, outcome.proven, outcome.said) == (2, 0, "gradients WRONG in 2 of 2 parameters")


ROOT = Path(torch_gradcheck.__file__).parents[1]


def started(directory: Path, program: str) -> str:
    """What a Python of its own prints."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_workers_of_xdist_send_what_they_found(tmp_path):
    (tmp_path / "test_made.py").write_text(MADE + SEVERAL)
    words = ["-p", "no:cacheprovider", *PLUGIN, "-n1", "--color=yes", "--gradcheck-report=reports"]

    out = started(tmp_path, f"import pytest; pytest.main({words})")

    assert COUNTED in out
    assert "\x1b[1;31mgradients right: 1 of 1 argument, contract BROKEN" in out
    names = {path.name for path in (tmp_path / "reports").iterdir()}
    assert len(names) == 11
    assert "5 gradient checks" in (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_session_that_checks_nothing_imports_nothing_large(tmp_path):
    (tmp_path / "test_plain.py").write_text("def test_it(): pass\n\n\ndef test_checks(gradcheck): gradcheck(1, 2, 3)\n")
    program = f"""
import pytest
words = ["-p", "no:cacheprovider", "-q", *{PLUGIN}]
for more in (["--help"], ["--markers"], ["--collect-only"], ["-k", "test_it", "--gradcheck-report=reports"]):
    pytest.main(words + more)
print("LARGE", [name for name in ("torch", "rich", "numpy", "matplotlib", "jinja2") if name in sys.modules])
"""

    out = started(tmp_path, program)

    assert "1 passed, 1 deselected" in out
    assert out.splitlines()[-1] == "LARGE []"
