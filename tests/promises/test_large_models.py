"""Promise: eleven million parameters in at most sixty evaluations of J, and one wrong entry among them found."""

from __future__ import annotations

import pytest
import torch

import large
from torch_gradcheck import Report


@pytest.fixture(scope="module")
def case() -> large.Case:
    return large.built("resnet")


@pytest.mark.slow
def test_a_correct_resnet_is_verified(case: large.Case) -> None:
    report: Report = large.check(case)
    assert report.evaluations <= 60
    assert {row.status for row in report} == {"match"}, str(report)
    assert sum(row.checked for row in report) == 11_173_962
    assert max(row.detectable for row in report) < 1e-3


@pytest.mark.slow
def test_one_wrong_entry_in_two_million_is_found(case: large.Case) -> None:
    place = (7, 11, 1, 2)

    def spoiled(gradient: torch.Tensor) -> torch.Tensor:
        changed = gradient.clone()
        changed[place] += gradient.abs().mean()
        return changed

    report = large.check_with(case, "layer4.1.conv1.weight", spoiled)
    [row] = report.mismatches
    assert (row.name, row.mismatched) == ("layer4.1.conv1.weight", 1), str(report)
    assert row.worst[0].index == place
    assert row.worst[0].noise < abs(row.worst[0].analytic - row.worst[0].numeric) / 10
