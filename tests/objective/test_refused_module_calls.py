"""Arguments that do not fit the forward of a module inside of a model, or a forward hook, are told with the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.errors import MisfitError

X = torch.ones(2, 3)
HERE = r"\S*test_refused_module_calls\.py:\d+"


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Calls(nn.Module):
    """Calls a module with more than it takes."""

    def __init__(self, inner: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.first, self.inner, self.args, self.kwargs = nn.Linear(3, 3), inner, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x), *self.args, **self.kwargs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            Calls(Scaled(), 3),
            rf"^'inner' \(Scaled\), called at {HERE}, was given a tensor of shape \(2, 3\) and an int, and its forward "
            rf"at {HERE} has the signature \(x: 'Tensor'\) -> 'Tensor' \(Python says: Scaled.forward\(\) takes 2 ",
        ),
        (Calls(Scaled(), mask=None), r"and mask=None, and its forward"),
        (Calls(nn.Tanh(), 3), r"^'inner' \(Tanh\(\)\), called at .* and its forward has the signature \(input"),
    ],
    ids=["positional", "keyword", "of torch"],
)
def test_the_signature_and_what_was_given(model: nn.Module, words: str) -> None:
    with pytest.raises(MisfitError, match=words) as caught:
        check_module(model, torch.sum, X)
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook(register: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    getattr(model[1], register)(lambda module: None)
    with pytest.raises(MisfitError, match=rf"^the forward hook lambda at {HERE} of '1' \(Tanh\(\)\) has the signature"):
        check_module(model, torch.sum, X)


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self._scaled(x, 2)  # type: ignore[call-arg]

    def _scaled(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_calls_of_the_users_own_functions_come_through() -> None:
    with pytest.raises(TypeError) as caught:
        check_module(Inside(), torch.sum, X)
    assert type(caught.value) is TypeError
