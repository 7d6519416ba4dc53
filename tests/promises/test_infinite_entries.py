"""Entries of θ that are infinite, such as masked scores: no step moves them, and all others are judged as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck import Status, check_function, check_module


class Softmax(Function):
    """The softmax of rows, its gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        y = x.softmax(-1)
        ctx.save_for_backward(y)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return ctx.factor * y * (g - (g * y).sum(-1, keepdim=True)), None


class Masked(nn.Module):
    """Scores, masked by −∞, weigh the batch."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.scores, self.factor = nn.Parameter(masked()), factor

    def forward(self, x: Tensor) -> Tensor:
        return Softmax.apply(self.scores, self.factor) @ x


def masked() -> Tensor:
    return torch.tensor([[1.0, 0.0, -torch.inf], [0.3, 0.2, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize(("factor", "status"), [(1.0, Status.MATCH), (1.01, Status.MISMATCH)], ids=["right", "wrong"])
def test_a_parameter(method: str, factor: float, status: Status) -> None:
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    report = check_module(Masked(factor), lambda y: y.square().sum(), x, method=method)
    assert report["scores"].status is status
    assert report["scores"].checked == 5
    assert any("were left out: 1 of scores" in note for note in report.notes)


def test_the_culprit_takes_infinite_arguments() -> None:
    report = check_function(lambda x: Softmax.apply(x, 1.01), (masked(),))
    assert report["x"].status is Status.MISMATCH
    assert any("Function Softmax gives a wrong gradient for x" in note for note in report.notes), str(report)
