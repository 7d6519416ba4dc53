"""A check that is over holds on to nothing: a monitor that runs for days may find the same mistake a thousand times."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn

from torch_gradcheck import check_module


class Swish(torch.autograd.Function):
    """x · sigmoid(x), with a backward in which a term is missing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(Swish.apply(self.first(x)))
        return result


def tensors_after_a_check() -> int:
    torch.manual_seed(0)
    assert not check_module(Net(), lambda y: y.square().sum(), torch.randn(4, 3)).passed
    gc.collect()
    return sum([issubclass(type(each), Tensor) for each in gc.get_objects()])


def test_no_tensor_of_a_check_that_found_a_mistake_stays() -> None:
    before = tensors_after_a_check()
    assert tensors_after_a_check() <= before
