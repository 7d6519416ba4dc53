"""What `"auto"` means: exact while that takes seconds, projected from then on, by the operations of J and no clock."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_module


def perceptron(*units: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(units):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def check(model: nn.Module, inputs: int, **options: Any) -> Report:
    batch = (torch.randn(4, inputs, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3)
    return check_module(model, nn.CrossEntropyLoss(), batch, **options)


class Reading(nn.Sequential):
    """Looks at values in Python, and so cannot be recorded."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if sum(y.flatten().tolist()) < 1e9 else 2 * y


def lenet() -> nn.Sequential:
    torch.manual_seed(0)
    features = [nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    head = [nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)]
    return nn.Sequential(*features, *head)


def test_a_small_model_is_checked_exactly() -> None:
    report = check(perceptron(6, 12, 3), 6)
    assert report.method == "exact"
    assert {row.directions for row in report} == {0}


@pytest.mark.slow
def test_lenet_is_checked_exactly() -> None:
    batch = (torch.randn(8, 1, 32, 32), torch.arange(8))
    assert check_module(lenet(), nn.CrossEntropyLoss(), batch).method == "exact"


@pytest.mark.slow
def test_a_large_model_is_projected_and_the_report_says_why() -> None:
    report = check(perceptron(300, 2000, 2000, 3), 300)
    assert report.method == "projected"
    assert {row.status for row in report} == {"match"}
    [why] = [note for note in report.notes if note.startswith("projected method, since ")]
    assert "differences at all 4,610,003 coordinates would take about" in why


@pytest.mark.slow
def test_a_large_model_that_cannot_be_recorded_is_projected_too() -> None:
    report = check(Reading(*perceptron(600, 1500, 3)), 600)
    assert report.method == "projected"
    assert {row.status for row in report} == {"match"}


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_method_asked_for_is_taken(method: str) -> None:
    report = check(perceptron(6, 12, 3), 6, method=method)
    assert report.method == method
    assert not any("method:" in note for note in report.notes)
