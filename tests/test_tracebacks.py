"""Tracebacks of errors of this package: the user's call, the user's layer, and nothing in between."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import (
    GradcheckError,
    GradientMonitor,
    blind_spots,
    check_closure,
    check_function,
    check_module,
    gradcheck,
)
from torch_gradcheck.tracebacks import ALL_FRAMES, UsersFrames, show_all_frames, shows_all_frames

X = torch.ones(5, 6)


class Net(nn.Module):
    """Takes seven numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def code_of(error: BaseException | None) -> list[str]:
    """The functions that an exception has come through, behind that of the test."""
    assert error is not None
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def net_of_function(x: Tensor) -> Tensor:
    return Net()(x)  # type: ignore[no-any-return]


CALLS: dict[str, Callable[[], object]] = {
    "module": lambda: check_module(Net(), torch.sum, X),
    "candidate": lambda: check_module(Net(), torch.sum, X, reference=Net()),
    "closure": lambda: check_closure(net := Net(), lambda: net(X).sum()),
    "function": lambda: check_function(net_of_function, (X,)),
    "blind spots": lambda: blind_spots(Net(), torch.sum, X),
    "monitor": lambda: GradientMonitor(Net(), torch.sum).step(X),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_from_the_call_to_the_layer(call: Callable[[], object]) -> None:
    with pytest.raises(GradcheckError) as caught:
        call()
    assert code_of(caught.value) == ["test_from_the_call_to_the_layer", "<lambda>"]
    assert type(caught.value.__cause__) is RuntimeError
    assert code_of(caught.value.__cause__)[-1] == "forward"
    assert set(code_of(caught.value.__cause__)) <= {"<lambda>", "net_of_function", "forward"}


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_module(Net(), torch.sum, X, method="no such"),
        lambda: GradientMonitor(Net(), torch.sum, every=0),
        lambda: GradientMonitor.of_closure(Net(), 3),
        lambda: gradcheck(torch.sin, (torch.ones(2),)),
        lambda: gradcheck(torch.Tensor.detach, (torch.ones(2, dtype=torch.float64, requires_grad=True),)),
    ],
    ids=["request", "monitor", "monitor of a closure", "no input of gradcheck", "failure of gradcheck"],
)
def test_of_requests_and_failures_the_call_alone_is_left(call: Callable[[], object]) -> None:
    with pytest.raises(GradcheckError) as caught:
        call()
    assert code_of(caught.value) == ["test_of_requests_and_failures_the_call_alone_is_left", "<lambda>"]


def test_all_frames_are_there_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shows_all_frames()
    with monkeypatch.context() as asked:
        asked.setenv(ALL_FRAMES, "1")
        with pytest.raises(GradcheckError) as caught:
            check_module(Net(), torch.sum, X)
        assert "check_module" in code_of(caught.value)
    back = show_all_frames()
    assert shows_all_frames()
    back()
    assert not shows_all_frames()


def raises(error: Exception) -> None:
    raise error


def test_an_error_of_the_users_own_keeps_its_frames() -> None:
    def forward(x: Tensor) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        check_function(forward, (X,))
    assert "check_function" in code_of(caught.value)
    assert code_of(caught.value)[-1] == "forward"


def test_frames_of_the_user_in_an_error_of_ours_stay() -> None:
    """As where the user's code calls the package from inside of J."""
    with pytest.raises(GradcheckError) as caught, UsersFrames():
        raises(GradcheckError("ours"))
    assert code_of(caught.value) == ["test_frames_of_the_user_in_an_error_of_ours_stay", "raises"]
