"""A check shared by two ranks: the same report on both, the work split, and one end for all."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import Report, check_module


class Doubled(torch.autograd.Function):
    """x, with twice its gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = Doubled.apply(x)
        return result


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
