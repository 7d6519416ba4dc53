"""Lines of the user's code are named as an editor can follow them."""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_gradcheck
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.loss import ModuleLoss
from torch_gradcheck.torch_internals.code_lines import (
    CodeLine,
    _beginnings,
    at_line_of,
    calling_frame,
    calling_line,
    defining_line,
    is_file_of_the_user,
    is_frame_of_the_user,
    raising_line,
    users_line_of,
)
from torch_gradcheck.torch_internals.dispatch import DispatchMode


class Asks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.line = calling_line()
        return x


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad


def test_the_line_that_calls_is_of_the_user_though_torch_runs_between() -> None:
    asks = Asks()
    nn.Sequential(asks)(torch.ones(1))
    assert asks.line == CodeLine(__file__, Asks.forward.__code__.co_firstlineno + 1)


def test_the_line_of_a_frame_is_told() -> None:
    frame = sys._getframe()
    line = calling_line(frame)
    assert line is not None
    assert Path(line.file).name == "test_code_lines.py"


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad.reshape(3, 5)


def test_the_line_that_an_exception_comes_from_is_of_the_user_though_torch_raises_it() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError) as caught:
        Raises.apply(x).sum().backward()  # type: ignore[no-untyped-call]
    assert raising_line(caught.value) == CodeLine(__file__, Raises.backward.__code__.co_firstlineno + 2)
    assert raising_line(ValueError()) is None


def test_what_a_dataclass_of_the_package_generates_is_not_the_users() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ModuleLoss(nn.Linear(2, 1), torch.sum, iter([]))
    generated = [each for each in caught.traceback if str(each.frame.code.raw.co_filename) == "<string>"]
    assert generated
    assert not any(is_frame_of_the_user(each.frame.raw) for each in generated)
    line = raising_line(caught.value)
    assert line is not None
    assert line.file == __file__


def test_the_frame_that_asked_for_an_operation_is_known() -> None:
    """A dispatch mode tells by it what J computes from what the check does."""

    class Asked(DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            frame = calling_frame()
            frames.append(frame and frame.f_code)
            return func(*args, **(kwargs or {}))

    frames: list[Any] = []
    with Asked():
        torch.ones(2).sin()
    assert frames[-1] is sys._getframe().f_code


@pytest.mark.parametrize("place", ["backward", "forward"])
def test_a_function_is_found_by_its_line(place: str) -> None:
    function = getattr(Through, place)
    line = defining_line(function)
    assert line is not None
    assert line.file == __file__
    assert f"def {place}(" in Path(__file__).read_text().splitlines()[line.line - 1]


def test_what_has_no_source_has_no_line() -> None:
    assert defining_line(torch.sin) is None
    assert defining_line(3) is None


def test_code_typed_into_a_shell_is_told_as_python_tells_it() -> None:
    scope: dict[str, object] = {}
    exec(compile("def typed():\n    pass\n", "<stdin>", "exec"), scope)
    assert str(defining_line(scope["typed"])) == "<stdin>:1"


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("{here}/nets/swish.py", "nets/swish.py:3"),
        ("/elsewhere/swish.py", "/elsewhere/swish.py:3"),
        ("<stdin>", "<stdin>:3"),
    ],
    ids=["below the working directory", "elsewhere", "shell"],
)
def test_paths_are_short_where_they_can_be(
    file: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(CodeLine(file.format(here=tmp_path), 3)) == shown


class Called:
    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        return grad

    def method(self, grad: torch.Tensor) -> torch.Tensor:
        return grad


@functools.wraps(Called.method)
def wraps(*arguments: object) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "written"),
    [
        (Called(), Called.__call__),
        (Called().method, Called.method),
        (functools.partial(functools.partial(Called.method, 1), 2), Called.method),
        (wraps, Called.method),
    ],
    ids=["object", "bound method", "partial", "wrapped"],
)
def test_what_is_wrapped_around_a_function_is_looked_through(function: object, written: object) -> None:
    line = f"{CodeLine(__file__, inspect.getsourcelines(written)[1])}"  # type: ignore[arg-type]
    assert at_line_of(function) == f" at {line}"


@pytest.mark.parametrize(
    "function", [torch.sin, nn.Linear.forward, nn.Linear(1, 1), defining_line, len, None], ids=lambda f: str(f)[:20]
)
def test_nothing_is_said_of_functions_that_are_not_the_users(function: object) -> None:
    assert at_line_of(function) == ""
    assert users_line_of(function) is None


def test_lines_outside_of_a_function_are_not_looked_at() -> None:
    """The line that asks for a check is none of J."""

    def of_this_package() -> CodeLine | None:
        return calling_line(inside=of_this_package.__code__)

    assert of_this_package() is None
    inner = eval(compile("lambda f: f()", "net.py", "eval"))

    def runs() -> CodeLine | None:
        return inner(lambda: calling_line(sys._getframe(1), inside=runs.__code__))  # type: ignore[no-any-return]

    assert runs() == CodeLine("net.py", 1)


def test_a_folder_whose_name_only_begins_as_that_of_torch_is_none_of_torchs() -> None:
    folder = torch.__path__[0]
    assert not is_file_of_the_user(f"{folder}/nn/functional.py")
    assert is_file_of_the_user(f"{folder}vision/ops.py")
    assert is_file_of_the_user(f"{Path(torch_gradcheck.__file__).parent}_of_mine/net.py")


def test_code_is_known_by_the_path_that_links_lead_to_as_well(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert f"{tmp_path / 'link' / 'file.py'}".startswith(_beginnings(tmp_path / "link"))
    assert f"{tmp_path.resolve() / 'there' / 'file.py'}".startswith(_beginnings(tmp_path / "link"))
