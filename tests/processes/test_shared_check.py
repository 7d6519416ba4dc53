"""A check shared by two ranks: the same report on both, the work split, and one end for all."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from tests.processes.sharded_models import Doubling
from torch_gradcheck import Report, check_module


def mlp(wrong: bool) -> nn.Module:
    torch.manual_seed(0)
    middle = Doubling() if wrong else nn.Identity()
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), middle, nn.Linear(16, 4))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 8, generator=generator), torch.randn(6, 4, generator=generator)


def shared_check(wrong: bool, method: str) -> Report:
    return check_module(mlp(wrong), nn.functional.mse_loss, batch(), method=method, group=dist.group.WORLD)


def without_seconds(report: Report) -> str:
    lines = [line for line in str(report).splitlines() if "evaluations" not in line]
    return "\n".join(lines)


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_every_rank_has_the_report_of_one_process(two_ranks: Ranks, wrong: bool, method: str) -> None:
    alone = check_module(mlp(wrong), nn.functional.mse_loss, batch(), method=method)
    one, other = two_ranks.run(shared_check, wrong, method)
    assert str(one) == str(other)
    assert one.passed is not wrong
    assert [(row.name, row.status) for row in one] == [(row.name, row.status) for row in alone]
    assert one.culprit == alone.culprit


def raises_on_one_rank() -> str:
    def loss_fn(y: Tensor, target: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            raise RuntimeError("no memory left here")
        return nn.functional.mse_loss(y, target)

    try:
        check_module(mlp(False), loss_fn, batch(), group=dist.group.WORLD)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_an_exception_on_one_rank_ends_the_check_on_all(two_ranks: Ranks) -> None:
    assert two_ranks.run(raises_on_one_rank) == ["no memory left here"] * 2


class Rounded(nn.Module):
    """A layer of units rounded to halves, with a gradient that passes straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h + (torch.round(2 * h) / 2 - h).detach()


def held_check(shared: bool) -> Report:
    torch.manual_seed(0)
    batch = torch.randn(5, 4), torch.randn(5, 3)
    group = dist.group.WORLD if shared else None
    return check_module(Rounded(), nn.functional.mse_loss, batch, hold_detached=True, group=group)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "each rank alone"])
def test_values_are_held_where_there_is_a_process_group(two_ranks: Ranks, shared: bool) -> None:
    for report in two_ranks.run(held_check, shared):
        assert report.proven, report
        assert any("detached at" in note for note in report.notes)
