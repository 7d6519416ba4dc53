"""What a call, a marker, the command line and the ini file say, in this order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from torch_gradcheck import request
from torch_gradcheck.pytest_plugin import options

WHO_COUNTS = """
pytestmark = pytest.mark.gradcheck(seed=5, mode="train", tolerance=1e-4)


def seed_of(gradcheck, **options):
    return gradcheck(linear(), loss, X, **options).seed


class TestOfAClass:
    pytestmark = pytest.mark.gradcheck(seed=6)

    def test_of_the_class(self, gradcheck):
        report = gradcheck(linear(), loss, X)
        assert (report.seed, report.mode, report.tolerance) == (6, "train", 1e-4)

    @pytest.mark.gradcheck(seed=7)
    def test_of_the_function(self, gradcheck):
        assert seed_of(gradcheck) == 7

    @pytest.mark.gradcheck(seed=7)
    def test_of_the_call(self, gradcheck):
        assert seed_of(gradcheck, seed=8) == 8


def test_of_the_module(gradcheck):
    assert seed_of(gradcheck) == 5


def test_a_function_has_no_mode(gradcheck):
    report = gradcheck.function(lambda x: x.square(), (X.double(),))
    assert (report.seed, report.tolerance, bool(report.contract)) == (5, 1e-4, True)


def test_a_closure(gradcheck):
    layer = linear()
    assert gradcheck.closure(layer, lambda: loss(layer(X))).mode == "train"


@pytest.mark.parametrize("case", [pytest.param(9, marks=pytest.mark.gradcheck(seed=9))])
def test_of_a_case(gradcheck, case):
    assert seed_of(gradcheck) == case
"""

OF_THE_SESSION = """
def test_it(gradcheck):
    report = gradcheck(linear(), loss, X)
    assert (report.seed, report.tolerance, report.mode) == EXPECTED
"""

INI = "[pytest]\ngradcheck_seed = 3\ngradcheck_tolerance = 1e-3\ngradcheck_mode = keep\n"


def test_the_modes_and_seeds_are_those_of_a_request():
    assert options.MODES == request.MODES
    assert options.MAX_SEED == request.MAX_SEED


def test_what_stands_nearer_counts(run):
    run(WHO_COUNTS, "--gradcheck-seed=4").assert_outcomes(passed=7)


@pytest.mark.parametrize(
    ("ini", "words", "expected"),
    [
        pytest.param("[pytest]\n", [], (0, 1e-5, "eval"), id="defaults"),
        pytest.param(INI, [], (3, 1e-3, "keep"), id="ini"),
        pytest.param(INI, ["--gradcheck-seed=4"], (4, 1e-3, "keep"), id="the command line before the ini"),
    ],
)
def test_options_of_a_session(run, pytester, ini, words, expected):
    (pytester.path / "pytest.ini").write_text(ini)

    run(f"EXPECTED = {expected}\n" + OF_THE_SESSION, *words).assert_outcomes(passed=1)


UNUSED = """
def unused():
    layer = linear()
    layer.register_parameter("spare", nn.Parameter(torch.ones(1)))
    return layer


def test_default(gradcheck):
    assert not gradcheck(unused(), loss, X).proven


@pytest.mark.gradcheck(strict=False)
def test_of_the_marker(gradcheck):
    gradcheck(unused(), loss, X)


def test_of_the_call(gradcheck):
    gradcheck(unused(), loss, X, strict=False)


@pytest.mark.gradcheck(strict=True)
def test_strict(gradcheck):
    with pytest.raises(torch_gradcheck.NothingProvenError):
        gradcheck(unused(), loss, X)
"""


@pytest.mark.parametrize(
    ("ini", "words", "failed"),
    [
        pytest.param("", [], 0, id="default"),
        pytest.param("", ["--gradcheck-strict"], 1, id="command line"),
        pytest.param("gradcheck_strict = true", [], 1, id="ini"),
        pytest.param("gradcheck_strict = true", ["-o", "gradcheck_strict=false"], 0, id="taken back"),
    ],
)
def test_strict_fails_what_is_not_proven(run, pytester, ini, words, failed):
    (pytester.path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")

    result = run(UNUSED, *words)

    result.assert_outcomes(passed=4 - failed, failed=failed)
    if failed:
        result.stdout.fnmatch_lines(
            [
                "E *NothingProvenError: gradients right: 2 of 3 parameters, 1 unused; not proven: spare",
                "FAILED test_made.py::test_default - not proven: spare",
            ]
        )


WRONG_KEYWORDS = """
@pytest.mark.gradcheck(tolerence=1e-3)
def test_of_a_marker(gradcheck):
    gradcheck(linear(), loss, X)


@pytest.mark.gradcheck("train")
def test_no_keyword(gradcheck):
    gradcheck(linear(), loss, X)


def test_of_a_call(gradcheck):
    gradcheck.function(linear(), (X,), mode="train")


def test_strict(gradcheck):
    gradcheck(linear(), loss, X, strict="yes")


def test_value(gradcheck):
    gradcheck(linear(), loss, X, mode="sideways")


@pytest.mark.gradcheck(mode="trian")
def test_value_of_a_marker(gradcheck):
    gradcheck.function(linear(), (X,))


def test_too_few(gradcheck):
    gradcheck.function(linear())
"""


def test_what_cannot_be_used_is_told_at_the_users_line(run):
    result = run(WRONG_KEYWORDS)

    result.assert_outcomes(failed=7)
    result.stdout.fnmatch_lines(
        [
            "E *@pytest.mark.gradcheck has an unknown option 'tolerence'; did you mean 'tolerance'? There are: *seed*",
            "E *@pytest.mark.gradcheck('train') takes keywords only, such as mode='train'; there are: *",
            "E *gradcheck was called with an unknown option 'mode'*There are: dtype, *",
            "E *strict must be True or False, got 'yes'.",
            "E *mode must be one of 'eval', 'train', 'keep', got str 'sideways'.",
            "E *mode of @pytest.mark.gradcheck must be one of 'eval', *, got 'trian'; did you mean 'train'?",
            "E *TypeError: gradcheck.function() missing 1 required positional argument: 'inputs'",
            "gradcheck: 6 checks; 0 tensors proven, 0 not proven, 0 wrong; 6 ended in an error",
        ]
    )
    assert "fixture.py" not in result.stdout.str()


A_SEED = "must be an integer from 0 to 9223372036854775807"
A_TOLERANCE = "gradcheck_tolerance must be a number above 0 and below 1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "gradcheck_seed=many"], f"*gradcheck_seed {A_SEED}: *many*"),
        (["-o", "gradcheck_seed=-3"], f"*gradcheck_seed {A_SEED}: got *-3*"),
        (["--gradcheck-seed=abc"], f"*argument --gradcheck-seed: {A_SEED}, got 'abc'"),
        (["--gradcheck-seed=-1"], f"*argument --gradcheck-seed: {A_SEED}, got '-1'"),
        (["-o", "gradcheck_tolerance=low"], f"*{A_TOLERANCE}: *low*"),
        (["-o", "gradcheck_tolerance=2"], f"*{A_TOLERANCE}: got *2*"),
        (["-o", "gradcheck_tolerance=nan"], f"*{A_TOLERANCE}: got *nan*"),
        (["-o", "gradcheck_mode=trian"], "*gradcheck_mode must be one of eval, train, keep, got 'trian'; *'train'[?]"),
        (["-o", "gradcheck_strict=maybe"], "*gradcheck_strict must be true or false: *maybe*"),
        (["--gradcheck-report=test_made.py"], "*--gradcheck-report must name a directory, got 'test_made.py': * file."),
        (["--gradcheck-report=test_made.py/in"], "*--gradcheck-report must name *test_made.py is a file."),
        (["-o", "gradcheck_report=test_made.py"], "*gradcheck_report must name *test_made.py is a file."),
        (["--gradcheck-report="], "*--gradcheck-report must name a directory, got ''."),
        (["--gradcheck-sed=3"], "*there is no option --gradcheck-sed; did you mean '--gradcheck-seed'[?] There are: *"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[-1],
)
def test_settings_that_cannot_be_used_end_the_session(run, words, said):
    result = run("", *words)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_the_marker_and_the_fixture_are_listed(run):
    markers, fixtures = run("", "--markers"), run("", "--fixtures")

    markers.stdout.fnmatch_lines(["@pytest.mark.gradcheck(*options): keywords of check_module, and strict, *"])
    fixtures.stdout.fnmatch_lines(["gradcheck -- *", "*Checks gradients: gradcheck(model, loss_fn, batch*"])


def test_tests_that_check_are_selected_by_the_marker(run):
    result = run("def test_one(gradcheck): pass\n\n\ndef test_other(): pass", "-m", "gradcheck", "--strict-markers")

    result.assert_outcomes(passed=1, deselected=1)


def test_a_session_does_without_the_plugin(pytester):
    pytester.makepyfile("def test_it(gradcheck): pass")

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:torch_gradcheck")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'gradcheck' not found"])


@pytest.mark.parametrize("value", [None, "", []], ids=repr)
def test_a_key_that_is_not_set_is_none_in_every_version_of_pytest(value):
    config = SimpleNamespace(getini=lambda _: value)

    assert options._set(config, "gradcheck_seed", options.SEEDS, int) is None


def test_options_of_others_that_begin_alike_are_left_to_them(pytester, run):
    pytester.makeconftest("def pytest_addoption(parser): parser.addoption('--gradcheck-slow', action='store_true')")

    run("def test_it(): pass", "--gradcheck-slow").assert_outcomes(passed=1)
