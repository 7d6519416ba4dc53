"""A cache or a hidden state that J keeps from call to call, with its graph, is told with the module that keeps it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.errors import MisfitError

X = torch.ones(2, 3)

KEPT: dict[str, Tensor] = {}


class Caching(nn.Module):
    """Computes once; what it keeps is where no check looks for state of a module."""

    def __init__(self, is_detached: bool = False) -> None:
        super().__init__()
        self.weight, self.is_detached = nn.Parameter(torch.ones(3)), is_detached

    def forward(self, x: Tensor) -> Tensor:
        y = KEPT.setdefault("y", x.sin())
        return self.weight * (y.detach() if self.is_detached else y)


@pytest.fixture(autouse=True)
def emptied() -> None:
    KEPT.clear()


def test_the_module_that_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Caching(), nn.Tanh())
    with pytest.raises(MisfitError, match=r"^'1' \(Caching\) computes with what an earlier call has left, as a cache"):
        check_module(model, torch.sum, X)


def test_what_is_detached_is_no_error() -> None:
    check_module(nn.Sequential(nn.Linear(3, 3), Caching(is_detached=True)), torch.sum, X)
