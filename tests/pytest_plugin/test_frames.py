"""What leads to the user's own code stays in a traceback; what is ours goes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import torch_gradcheck
from torch_gradcheck.pytest_plugin.frames import without_ours
from torch_gradcheck.tracebacks import ALL_FRAMES, OURS, chain

OUR_FILES = ("pytest_plugin/fixture.py", "torch_gradcheck/check.py", "objective/loss.py")
"""Some that an error of the user's comes through."""


class Raises(nn.Module):
    """A layer whose forward fails in a function that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.helped(self.layer(x))

    def helped(self, y):
        raise ZeroDivisionError("mine")


def names(error: BaseException) -> list[str]:
    """The functions of a traceback, from the outermost to the innermost."""
    found, entry = [], error.__traceback__
    while entry is not None:
        found.append(entry.tb_frame.f_code.co_name)
        entry = entry.tb_next
    return found


def files(error: BaseException) -> list[str]:
    found, entry = [], error.__traceback__
    while entry is not None:
        found.append(entry.tb_frame.f_code.co_filename)
        entry = entry.tb_next
    return found


def test_an_error_of_the_users_keeps_the_users_frames():
    with pytest.raises(ZeroDivisionError) as caught:
        torch_gradcheck.check_module(Raises(), torch.sum, torch.ones(1, 2))
    error = caught.value

    without_ours(error)

    assert names(error)[0] == "test_an_error_of_the_users_keeps_the_users_frames"
    assert names(error)[-2:] == ["forward", "helped"]
    assert not [file for file in files(error) if file.startswith(OURS)]


def test_an_operation_that_fails_ends_in_the_line_that_asked_for_it():
    model = nn.Linear(3, 1)
    with pytest.raises(RuntimeError) as caught:
        torch_gradcheck.check_function(lambda x: model.weight @ x, (torch.ones(2),))
    error = next(one for one in chain(caught.value) if not isinstance(one, torch_gradcheck.GradcheckError))

    without_ours(caught.value)

    assert names(error)[-1] == "<lambda>"


def test_an_error_on_purpose_keeps_no_frame():
    with pytest.raises(torch_gradcheck.InvalidRequestError) as caught:
        torch_gradcheck.check_module(nn.Linear(2, 1), torch.sum, torch.ones(1, 2), mode="sideways")

    without_ours(caught.value)

    assert caught.value.__traceback__ is None


def test_what_the_engine_raises_keeps_no_frame_of_torch():
    def changes_what_was_saved(x):
        y = x.exp()
        y += 1
        return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        torch_gradcheck.check_function(changes_what_was_saved, (torch.ones(2),))

    without_ours(caught.value)

    assert set(files(caught.value)) <= {__file__}


def test_a_mistake_of_the_package_keeps_all_frames(monkeypatch):
    monkeypatch.setattr("torch_gradcheck.request.one_of", lambda *_: {}["missing"])
    with pytest.raises(KeyError) as caught:
        torch_gradcheck.check_module(nn.Linear(2, 1), torch.sum, torch.ones(1, 2))
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next  # as where the innermost frame is of the package
    before = files(error)
    last = caught.traceback[-2]._rawentry
    last.tb_next = None

    without_ours(error)

    assert files(error) == before[:-1]


def test_what_led_to_an_error_on_purpose_is_left_out_where_it_is_ours():
    inner, outer = ValueError("ours"), torch_gradcheck.InvalidRequestError("said")
    outer.__cause__ = inner

    without_ours(outer)

    assert outer.__cause__ is None


def test_a_users_error_that_led_to_one_of_ours_stays():
    outer = torch_gradcheck.InvalidRequestError("said")
    try:
        Raises().helped(None)
    except ZeroDivisionError as error:
        outer.__cause__ = error

    without_ours(outer)

    assert isinstance(outer.__cause__, ZeroDivisionError)
    assert names(outer.__cause__)[-1] == "helped"


def test_a_chain_with_a_circle_ends():
    one, other = ValueError(), KeyError()
    one.__context__, other.__context__ = other, one
    group = ExceptionGroup("both", [one])

    assert {type(error) for error in chain(group)} == {ExceptionGroup, ValueError, KeyError}
    assert len(chain(group)) == 3


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error that nobody may write to."""


def test_an_error_that_cannot_be_written_to_loses_its_frames_too():
    with pytest.raises(FrozenError) as caught:
        torch_gradcheck.check_module(nn.Linear(2, 1), torch.sum, torch.ones(1, 2), method=FrozenMethod())

    without_ours(caught.value)

    assert not [file for file in files(caught.value) if file.startswith(OURS)]


class FrozenMethod(str):
    """An argument whose use raises that error."""

    __slots__ = ()

    def __eq__(self, other):
        raise FrozenError

    __hash__ = str.__hash__


def test_an_error_without_a_text_comes_through(run):
    result = run(
        """
class Untold(Exception):
    def __str__(self):
        raise LookupError


def test_it(gradcheck):
    def raises(y):
        raise Untold

    with pytest.raises(Untold):
        gradcheck(linear(), raises, X)
"""
    )

    result.assert_outcomes(passed=1)


USERS_ERRORS = """
import sys
import unittest


class Raises(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError("mine")


class Ends(nn.Module):
    def forward(self, x):
        sys.exit("mine")


class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _take(self, gradcheck):
        self.gradcheck = gradcheck

    def test_of_unittest(self):
        self.gradcheck(Raises(), loss, X.requires_grad_())


@pytest.fixture
def checked(gradcheck):
    return gradcheck(Raises(), loss, X.requires_grad_())


def test_in_a_fixture(checked):
    pass


@pytest.mark.parametrize("layer", [Raises, Ends])
def test_in_a_test(gradcheck, layer):
    gradcheck(layer(), loss, X.requires_grad_())


def test_in_a_function(gradcheck):
    gradcheck.function(Raises(), (X,))


def test_led_to_another(gradcheck):
    try:
        gradcheck(Raises(), loss, X.requires_grad_())
    except ZeroDivisionError:
        raise KeyError("mine")


def test_without_the_fixture():
    torch_gradcheck.check_module(Raises(), loss, X.requires_grad_())


def test_of_a_name(gradcheck):
    gradcheck.modul()
"""


@pytest.mark.parametrize("style", ["auto", "long", "short", "native", "line", "no"])
def test_no_style_shows_a_frame_of_the_package_around_the_users_error(run, style):
    result = run(USERS_ERRORS, f"--tb={style}")

    result.assert_outcomes(failed=7, errors=1)
    out = result.stdout.str()
    assert not [file for file in (*OUR_FILES, "functools.py") if file in out]
    if style not in ("line", "no"):
        assert out.count('raise ZeroDivisionError("mine")') == 6


@pytest.mark.parametrize("style", ["auto", "long", "short", "native"])
@pytest.mark.parametrize("way", ["option", "variable"])
def test_all_frames_are_shown_to_those_who_ask_for_them(run, monkeypatch, style, way):
    if way == "variable":
        monkeypatch.setenv(ALL_FRAMES, "1")
    out = run(USERS_ERRORS, f"--tb={style}", "-k", "in_a_test", *["--full-trace"] * (way == "option")).stdout.str()

    assert not [file for file in OUR_FILES if file not in out]


def test_a_test_that_does_not_call_the_package_keeps_its_traceback(run):
    out = run(
        """
def test_it():
    linear()(torch.ones(2, 3))
"""
    ).stdout.str()

    assert "in _call_impl" in out or "_call_impl(" in out
