"""No check warns of its own doing: a warning in the user's program is to be about the user's code."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module


class Detaching(nn.Module):
    """Loses a part of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        result: Tensor = self.last(torch.tanh(hidden) * hidden.detach())
        return result


def right() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("make", [Detaching, right])
@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_check_does_not_warn(make: Callable[[], nn.Module], method: str) -> None:
    torch.manual_seed(0)
    batch = (torch.randn(8, 6), torch.randint(0, 3, (8,)))
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            check_module(make(), nn.CrossEntropyLoss(), batch, method=method)
    finally:
        torch.set_warn_always(False)
    assert not [str(each.message) for each in told]
