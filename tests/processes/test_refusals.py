"""What cannot be checked is refused by two ranks as by one process: the same error, with the same words, on both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import GradcheckError, blind_spots, check_closure, check_function, check_module

Group = Any
mse = nn.functional.mse_loss


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


BATCH = (torch.linspace(-1, 1, 12).reshape(4, 3), torch.zeros(4, 2))


def drifting(group: Group) -> object:
    calls = [0]

    def loss(y: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return mse(y, target) * calls[0]

    return check_module(model(), loss, BATCH, group=group)


class Once(torch.autograd.Function):
    """x², once differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        result: Tensor = 2 * x * gradient
        return result


class Raising(torch.autograd.Function):
    """x, with a backward that raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("no backward here")


def renamed() -> nn.Module:
    return nn.ModuleDict({"other": model()})


REFUSED: dict[str, Callable[[Group], object]] = {
    "not finite": lambda group: check_module(model(), lambda y, t: mse(y, t) / 0, BATCH, group=group),
    "no scalar": lambda group: check_module(model(), lambda y, t: y - t, BATCH, group=group),
    "not deterministic": drifting,
    "no such name": lambda group: check_module(model(), mse, BATCH, include="3.*", group=group),
    "no such option": lambda group: check_module(model(), mse, BATCH, method="fast", group=group),
    "out of reach": lambda group: check_closure(model(), lambda: torch.ones(()), group=group),
    "once differentiable": lambda group: check_function(Once.apply, (BATCH[0],), order=2, group=group),
    "raises in backward": lambda group: check_function(Raising.apply, (BATCH[0],), group=group),
    "other names": lambda group: check_module(model(), mse, BATCH, reference=renamed(), group=group),
    "reference not finite": lambda group: check_function(
        torch.square, (BATCH[0],), reference=lambda x: (x - 2).log(), group=group
    ),
    "nothing to plant": lambda group: blind_spots(model(), lambda y, t: y - t, BATCH, group=group),
}


def refusal(case: str) -> tuple[str, str]:
    try:
        found = REFUSED[case](dist.group.WORLD if dist.is_initialized() else None)
    except (GradcheckError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return "none", str(found)


@pytest.mark.parametrize("case", REFUSED)
def test_both_ranks_are_told_what_one_process_is(two_ranks: Ranks, case: str) -> None:
    alone = refusal(case)
    assert alone[0] != "none", alone[1]
    assert two_ranks.run(refusal, case) == [alone, alone]
