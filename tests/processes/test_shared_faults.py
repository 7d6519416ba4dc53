"""The faults of `blind_spots`, dealt over two ranks: the same rows in the same order on both as of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import BlindSpots, blind_spots
from torch_gradcheck.planting import module_faults


class Tied(nn.Module):
    """Two layers with one weight, a norm at weights of exactly 1, a unit that never fires, a module that never runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight
        self.norm, self.act, self.idle = nn.LayerNorm(4), nn.ReLU(), nn.Linear(2, 2)
        with torch.no_grad():
            self.one.bias[2] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.other(self.act(self.one(x))))
        return y


class Unplantable(nn.Module):
    """Two calls of it are two functions, so that it cannot be run beside itself with a parameter left out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 4.0, 5.0]))

    def forward(self, x: Tensor) -> Tensor:
        if x.grad_fn is None and x.requires_grad:
            raise RuntimeError("not on a leaf")
        return x * self.scale


MODELS = {"tied": Tied, "unplantable": lambda: nn.Sequential(nn.Linear(4, 4), Unplantable())}


def found(name: str) -> tuple[BlindSpots, int]:
    """The faults of a model, and how many backwards were run for them on this rank."""
    model, count = MODELS[name](), 0
    planted, generator = module_faults.theta_gradients, torch.Generator().manual_seed(1)

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return planted(*args, **kwargs)

    module_faults.theta_gradients = counting
    try:
        group = dist.group.WORLD if dist.is_initialized() else None
        batch = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
        return blind_spots(model, nn.functional.mse_loss, batch, group=group), count
    finally:
        module_faults.theta_gradients = planted


@pytest.mark.parametrize("name", MODELS)
def test_both_ranks_have_the_rows_of_one_process(two_ranks: Ranks, name: str) -> None:
    alone, backwards = found(name)
    (one, own), (other, others) = two_ranks.run(found, name)
    assert str(one) == str(other) == str(alone)
    assert one.to_dict() == other.to_dict() == alone.to_dict()
    assert own + others == backwards
    assert abs(own - others) <= 6, "each rank has about half, in whole modules"


def fails_on_one_rank() -> str:
    model, evaluations = Tied(), [0]

    def loss_fn(y: Tensor) -> Tensor:
        evaluations[0] += 1
        if dist.get_rank() == 1 and evaluations[0] == 2:
            raise RuntimeError("no memory left here")
        return y.square().sum()

    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        blind_spots(model, loss_fn, torch.ones(2, 4), group=dist.group.WORLD)
    except RuntimeError as error:
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        return str(error)
    return "no error"


def test_an_exception_on_one_rank_ends_it_on_both(two_ranks: Ranks) -> None:
    assert two_ranks.run(fails_on_one_rank) == ["no memory left here"] * 2
