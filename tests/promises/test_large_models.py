"""Promise: eleven million parameters in at most sixty evaluations of J, and one wrong entry among millions found.

`benchmarks/large.py` finds one among the eleven million. Images have a sixteenth of their size: θ is large here, not J.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import large
from torch_gradcheck import Report


def resnet(widths: Sequence[int]) -> large.Case:
    torch.manual_seed(0)
    model = large.ResNet(widths).double().eval()
    return replace(large.built("resnet"), model=model, inputs=torch.randn(2, 3, 8, 8, dtype=torch.float64))


@pytest.mark.slow
def test_a_correct_resnet_is_verified() -> None:
    report: Report = large.check(resnet((64, 128, 256, 512)))
    assert report.evaluations <= 60
    assert {row.status for row in report} == {"match"}, str(report)
    assert sum(row.checked for row in report) == 11_173_962
    assert max(row.detectable for row in report) < 1e-3


@pytest.mark.slow
def test_one_wrong_entry_in_three_million_is_found() -> None:
    place = (7, 11, 1, 2)

    def spoiled(gradient: torch.Tensor) -> torch.Tensor:
        changed = gradient.clone()
        changed[place] += gradient.abs().mean()
        return changed

    report = large.check_with(resnet((32, 64, 128, 256)), "layer4.1.conv1.weight", spoiled)
    [row] = report.mismatches
    assert (row.name, row.mismatched) == ("layer4.1.conv1.weight", 1), str(report)
    assert row.worst[0].index == place
    assert row.worst[0].noise < abs(row.worst[0].analytic - row.worst[0].numeric) / 10
    assert sum(each.checked for each in report) == 2_797_610
