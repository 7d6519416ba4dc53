"""Samples of the eager engine split over ranks: those of ladders at θ and beside it, at kinks."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import Report, check_module
from torch_gradcheck.engines import shared


def at_kinks() -> nn.Module:
    """Units of ReLU that stand at 0, for whole numbers in weights, biases and inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in model[:-1].parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
    return model


def checked(group: dist.ProcessGroup | None) -> tuple[Report, int]:
    """The report, and how often this process has run J."""
    runs = Counter[str]()

    def loss_fn(y: Tensor, targets: Tensor) -> Tensor:
        runs["J"] += 1
        return nn.functional.cross_entropy(y, targets)

    torch.manual_seed(1)
    batch = torch.randint(-2, 3, (6, 6)).float(), torch.arange(6) % 3
    with patch.object(shared, "WORTHWHILE", 0.0):  # else what is split hangs on how long J takes here
        return check_module(at_kinks(), loss_fn, batch, group=group), runs["J"]


def checked_by_all() -> tuple[Report, int]:
    return checked(dist.group.WORLD)


@pytest.mark.slow
def test_ladders_at_kinks_are_split_evenly(two_ranks: Ranks) -> None:
    alone, runs = checked(None)
    found = two_ranks.run(checked_by_all)
    for report, own in found:
        assert [(row.name, row.status, row.mismatched) for row in report] == [
            (row.name, row.status, row.mismatched) for row in alone
        ]
        assert own < 0.65 * runs
    assert abs(found[0][0].evaluations - alone.evaluations) < 100
