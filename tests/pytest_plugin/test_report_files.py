"""The directory of reports: a page and a JSON file a check, under names for every file system, and an index."""

from __future__ import annotations

import re

import pytest

from torch_gradcheck import Report
from torch_gradcheck.pytest_plugin.outcome import Outcome
from torch_gradcheck.pytest_plugin.report_files import file_name, write_index

IDS = [
    "tests/test_a.py::test_it",
    "tests/test_a.py::Test_It",
    "tests/test_a.py::test_it[a/b]",
    "tests/test_a.py::test_it[a b]",
    "tests/test_a.py::test_it[a\\b]",
    "tests/test_a.py::test_it[ünïcode]",
    "tests/test_a.py::test_it[../../etc]",
    "tests/test_a.py::test_it[" + 300 * "x" + "]",
    "tests/test_a.py::test_it[" + 301 * "x" + "]",
    "CON",
    "...",
    "\udcff",
]


@pytest.mark.parametrize("test", IDS, ids=range(len(IDS)))
def test_a_name_is_one_everywhere(test):
    for number in (1, 12):
        name = file_name(test, number)
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)
        assert len(f"{name}.html") <= 128
        assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name)


def test_names_differ_without_regard_to_capital_letters():
    names = {file_name(test, number).lower() for test in IDS for number in (1, 2)}

    assert len(names) == 2 * len(IDS)


TWO_CHECKS = """
@pytest.mark.parametrize("where", ["a/b", "<c>"])
def test_it(gradcheck, where):
    gradcheck(linear(), loss, X)
    gradcheck(linear(), loss, X, gradients=NOTHING)


def test_error(gradcheck):
    gradcheck(linear(), loss, X, mode="sideways")


def test_nothing():
    pass
"""


@pytest.mark.parametrize(
    ("ini", "words"),
    [pytest.param("", ["--gradcheck-report=reports/here"], id="option"), ("gradcheck_report = reports/here", [])],
    ids=["command line", "ini"],
)
def test_every_check_has_its_files_and_its_line_in_the_index(run, pytester, ini, words):
    (pytester.path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")

    result = run(TWO_CHECKS, *words)

    directory = pytester.path / "reports" / "here"
    result.stdout.fnmatch_lines([f"gradcheck: reports in {directory}"])
    index = (directory / "index.html").read_text(encoding="utf-8")
    linked = re.findall(r'href="([^"]+)"', index)
    assert sorted(linked) == sorted(path.name for path in directory.iterdir() if path.name != "index.html")
    assert len(linked) == 8
    read = [
        Report.from_json((directory / name).read_text(encoding="utf-8")) for name in linked if name.endswith(".json")
    ]
    assert [report.passed for report in read] == [True, False, True, False]
    assert {report.provenance.again for report in read} == {
        f"pytest 'test_made.py::test_it[{x}]'" for x in ("a/b", "<c>")
    }
    assert "<title>5 gradient checks, 3 failed</title>" in index
    assert "test_made.py::test_it[&lt;c&gt;], check 2</a></td><td>gradients WRONG in 2 of 2 parameters</td>" in index
    assert "not checked: InvalidRequestError" in index


def test_a_session_without_checks_leaves_the_last_index(run, pytester):
    (pytester.path / "reports").mkdir()
    (pytester.path / "reports" / "index.html").write_text("of the last session")

    run("def test_nothing(): pass", "--gradcheck-report=reports")

    assert (pytester.path / "reports" / "index.html").read_text() == "of the last session"


def test_an_index_of_many_checks_tells_them_apart(tmp_path):
    outcomes = [Outcome("test_a.py::test", number, "said", passed=True, file=f"f{number}") for number in range(1, 4)]

    index = write_index(outcomes, tmp_path).read_text(encoding="utf-8")

    assert [index.count(f"check {number}</a>") for number in range(1, 4)] == [0, 1, 1]
    assert "3 gradient checks, 0 failed" in index


def test_a_directory_that_cannot_be_written_is_told_at_the_users_line(run, pytester):
    result = run(
        """
def test_it(gradcheck, pytestconfig):
    directory = pytestconfig.invocation_params.dir / "reports"
    directory.rmdir()
    directory.write_text("a file")
    gradcheck(linear(), loss, X)
""",
        "--gradcheck-report=reports",
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       gradcheck(linear(), loss, X)",
            "E *InvalidRequestError: the report cannot be written to *",
            "gradcheck: no index of the reports could be written: *",
        ]
    )
