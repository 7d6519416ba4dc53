"""A failed check shows the user's line, the outcome and the table, and no frame of this package."""

from __future__ import annotations

import io
import re
import sys

import pytest

WRONG = """
def test_wrong(gradcheck):
    layer = linear()
    gradcheck(layer, loss, X, gradients=NOTHING)
"""
SAID = "gradients WRONG in 2 of 2 parameters"
OF_THE_PACKAGE = re.compile(r"torch_gradcheck[/\\]\w+[/\\.]")

CULPRIT = """
class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return grad


class Twice(nn.Module):
    def forward(self, x):
        return Doubling.apply(x)


def test_it(gradcheck):
    gradcheck(nn.Sequential(linear(), Twice()), loss, X)
"""


@pytest.mark.parametrize("style", ["auto", "long", "short", "native"])
def test_the_table_stands_under_the_users_line(run, style):
    result = run(WRONG, f"--tb={style}")

    result.assert_outcomes(failed=1)
    out = result.stdout.str()
    assert not OF_THE_PACKAGE.search(out)
    result.stdout.fnmatch_lines(["*gradcheck(layer, loss, X, gradients=NOTHING)*", f"*{SAID}"])
    assert len(re.findall(r"^✗ mismatch", out, flags=re.MULTILINE)) == 2
    assert out.count("notes\n") == 1
    result.stdout.fnmatch_lines([f"FAILED test_made.py::test_wrong - {SAID}"])


@pytest.mark.parametrize(("style", "said"), [("line", f"*:22: {SAID}"), ("no", f"FAILED * - {SAID}")])
def test_where_one_line_or_none_is_wanted_there_is_no_table(run, style, said):
    result = run(WRONG, f"--tb={style}")

    result.stdout.fnmatch_lines([said])
    assert "✗ mismatch" not in result.stdout.str()


def test_the_whole_traceback_is_shown_to_those_who_ask_for_it(run):
    result = run(WRONG, "--full-trace")

    result.stdout.fnmatch_lines(["*pytest_plugin*fixture.py*", "✗ mismatch *"])


@pytest.mark.parametrize("ci", [False, True], ids=["at a desk", "in CI"])
def test_the_culprit_stands_in_the_short_summary(run, monkeypatch, ci):
    if ci:
        monkeypatch.setenv("CI", "1")
    result = run(CULPRIT)

    shown = WHOLE if ci else "gradients WRONG in 2 of 2 parameters; culprit: 1"
    result.stdout.fnmatch_lines([f"E *: {WHOLE}", f"FAILED test_made.py::test_it - {shown}"])
    assert result.stdout.str().count("notes\n") == 1


@pytest.mark.parametrize("style", ["line", "no"])
def test_without_a_traceback_the_line_of_the_culprit_is_told_all_the_same(run, monkeypatch, style):
    monkeypatch.setenv("COLUMNS", "140")

    result = run(CULPRIT, f"--tb={style}")

    result.stdout.fnmatch_lines(
        ["*test_made.py:*: gradients *culprit: 1, in the backward of Doubling at test_made.py:26"]
    )


WHOLE = "gradients WRONG in 2 of 2 parameters; culprit: 1, in the backward of Doubling at test_made.py:26"
LONG_NAME = "test_of_everything_that_doubles_what_it_is_given"


def between(out: str, first: str, last: str) -> list[str]:
    """The lines behind the last one that begins with `first`, up to the next that begins with `last`."""
    return out.rpartition(f"\n{first}")[2].partition(f"\n{last}")[0].splitlines()[1:]


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_what_the_short_summary_has_no_room_for_is_told_above_it(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))

    out = run(CULPRIT.replace("test_it", LONG_NAME)).stdout.str()

    told = between(out, f"gradcheck: test_made.py::{LONG_NAME}:", "gradcheck: 1 check")
    assert " ".join(line.strip() for line in told) == WHOLE
    assert max(map(len, told)) <= columns


@pytest.mark.parametrize("said", ["in CI", "on the line", "caught", "on a wide terminal"])
def test_what_is_told_elsewhere_is_not_told_above_the_short_summary(run, monkeypatch, said):
    name = "test_it" if said == "on the line" else LONG_NAME
    monkeypatch.setenv("CI" if said == "in CI" else "COLUMNS", {"on a wide terminal": "140"}.get(said, "80"))
    tests = CULPRIT.replace("test_it", name)
    if said == "caught":
        tests = tests.replace("    gradcheck(", "    with pytest.raises(GradientMismatchError):\n        gradcheck(")

    out = run(tests).stdout.str()

    assert "gradcheck: test_made" not in out
    assert "gradcheck: 1 check; 0 tensors proven, 0 not proven, 2 wrong" in out


MISFIT = """
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(linear())

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("held", [False, True])
def test_it(gradcheck, held):
    gradcheck(Own(), loss, torch.ones(2, 3), hold_detached=held)


def test_of_torch(gradcheck):
    gradcheck(linear(), loss, torch.ones(2, 3))
"""


def test_what_does_not_fit_shows_the_users_layer_and_no_frame_of_torch(run):
    out = run(MISFIT).stdout.str()

    assert out.count(">       return self.layers(x)") == 2
    assert out.count("E       torch_gradcheck.errors.MisfitError: 'layers.0' (Linear(") == 2
    assert out.count("E       torch_gradcheck.errors.MisfitError: the model itself (Linear(") == 1
    assert not re.search(r"torch[/\\]nn|_call_impl", out)


DIRECT = """
def test_misfit():
    torch_gradcheck.check_module(linear(), loss, torch.ones(2, 3))


def test_loader():
    torch_gradcheck.check_module(linear(), loss, torch.utils.data.DataLoader([1]))


def test_drop_in():
    torch_gradcheck.gradcheck(lambda x: x.detach() * x, (X.double().requires_grad_(),))


def test_row(gradcheck):
    gradcheck(linear(), loss, X)["biass"]


def test_of_the_users():
    raise torch_gradcheck.InvalidRequestError("mine")
"""


def test_tests_that_call_the_package_themselves_show_no_frame_of_it(run):
    result = run(DIRECT)

    result.assert_outcomes(failed=5)
    assert not OF_THE_PACKAGE.search(re.sub("torch_gradcheck\\.[a-z_.]+Error", "", result.stdout.str()))
    result.stdout.fnmatch_lines(
        [
            ">   *check_module(linear(), loss, torch.ones(2, 3))",
            ">   *DataLoader([[]1]))",
            ">   *torch_gradcheck.gradcheck(lambda*",
            "E   *no row 'biass' in this report; close names: bias*",
            ">   *raise torch_gradcheck.InvalidRequestError(*",
        ]
    )
    assert "<string>" not in result.stdout.str()


def test_a_call_that_the_fixture_does_not_have_names_those_that_it_has(run):
    result = run("def test_it(gradcheck): gradcheck.functon(loss, (X,))")

    result.stdout.fnmatch_lines(["E * gradcheck has no 'functon'; did you mean 'function'? There are: closure, *"])
    assert "fixture.py" not in result.stdout.str()


def test_colours_and_width_are_those_of_pytest(run, monkeypatch, pytester):
    monkeypatch.setenv("COLUMNS", "120")

    plain, coloured = run(WRONG, "--color=no"), run(WRONG, "--color=yes", "--junitxml=junit.xml")

    assert "\x1b" not in plain.stdout.str()
    assert "\x1b[31m✗ mismatch" in coloured.stdout.str()
    (kind,) = [line for line in plain.stdout.lines if line.startswith("    missing: ")]
    assert 80 < len(kind) <= 120
    junit = (pytester.path / "junit.xml").read_text(encoding="utf-8")
    assert f'<property name="gradcheck" value="{SAID}" />' in junit
    assert "✗ mismatch" in junit
    assert "x1B" not in junit


OTHER_TESTS = """
import unittest


class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _take(self, gradcheck):
        self.gradcheck = gradcheck

    def test_of_unittest(self):
        self.gradcheck(linear(), loss, X, gradients=NOTHING)


@pytest.fixture
def checked(gradcheck):
    return gradcheck(linear(), loss, X, gradients=NOTHING)


def test_in_a_fixture(checked):
    pass


def test_led_to_another_error(gradcheck):
    try:
        gradcheck(linear(), loss, X, gradients=NOTHING)
    except GradientMismatchError as error:
        raise RuntimeError("mine") from error


def test_in_subtests(gradcheck, subtests):
    for mode in ("eval", "train"):
        with subtests.test(mode=mode):
            gradcheck(linear(), loss, X, gradients=NOTHING, mode=mode)


def test_caught(gradcheck):
    with pytest.raises(GradientMismatchError, match="0.000000e.00"):
        gradcheck(linear(), loss, X, gradients=NOTHING)
"""


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_every_kind_of_test_shows_its_tables(run):
    result = run(OTHER_TESTS)

    out = result.stdout.str()
    result.assert_outcomes(passed=1, failed=5, errors=1)
    assert not OF_THE_PACKAGE.search(out)
    assert len(re.findall(r"^-+ gradcheck -+$", out, flags=re.MULTILINE)) == 5
    assert "FAILED test_made.py::test_led_to_another_error - RuntimeError: mine" in out
    assert "gradcheck: 6 checks; 0 tensors proven, 0 not proven, 12 wrong" in out


def test_reports_tell_about_themselves_in_an_assertion(run):
    result = run(
        """
def test_passed():
    report = torch_gradcheck.check_module(linear(), loss, X, gradients=NOTHING)
    assert report.passed


def test_report():
    report = torch_gradcheck.check_module(linear(), loss, X, gradients=NOTHING)
    assert report


def test_raised():
    torch_gradcheck.check_module(linear(), loss, X, gradients=NOTHING).raise_if_failed()
"""
    )

    shown = f"<Report: {SAID}; *>"
    raised = "FAILED *test_raised - GradientMismatchError: gradients WRONG*"
    result.stdout.fnmatch_lines([f"E * where False = {shown}.passed", f"E * assert {shown}", raised])
    assert not OF_THE_PACKAGE.search(result.stdout.str())


def test_a_session_keeps_no_traceback_of_a_failed_test(run):
    result = run(
        WRONG
        + """

def test_after_it(request):
    from torch_gradcheck.pytest_plugin.fixture import FAILURES

    assert request.session.items[0].stash[FAILURES] == []
"""
    )

    result.assert_outcomes(passed=1, failed=1)


def test_a_terminal_gets_characters_that_it_can_encode(run, monkeypatch):
    monkeypatch.setattr(sys, "__stdout__", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))

    out = run(WRONG).stdout.str()

    assert "x mismatch weight" in out
    assert out.isascii()


DOCTEST = '''
def documented():
    """
    >>> gradcheck = getfixture("gradcheck")
    >>> gradcheck(linear(), loss, X).passed
    True
    >>> gradcheck(linear(), loss, X, gradients=NOTHING).passed
    True
    """
'''


@pytest.mark.parametrize("words", [[], ["--doctest-continue-on-failure"]], ids=["first", "all"])
def test_a_doctest_shows_the_table_and_no_frame_of_the_package(run, words):
    result = run(DOCTEST, "--doctest-modules", *words)

    result.assert_outcomes(failed=1)
    out = result.stdout.str()
    assert not OF_THE_PACKAGE.search(re.sub("torch_gradcheck\\.[a-z_.]+Error", "", out))
    assert len(re.findall(r"^✗ mismatch", out, flags=re.MULTILINE)) == 2
    result.stdout.fnmatch_lines(["gradcheck: test_made.py::test_made.documented, check 2:", f"  {SAID}"])


def test_a_session_without_a_terminal_is_silent(run):
    result = run(WRONG, "-p", "no:terminal")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.str() == ""
