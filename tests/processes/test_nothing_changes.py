"""Nothing of the caller's changes on either rank, whichever rank evaluates, and whatever a rank ends in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from tests.processes.test_shared_calls import Wrong, block
from torch_gradcheck import blind_spots, check_module


class Failing:
    """A loss that raises on rank 1 at the n-th evaluation there; never where n is 0."""

    def __init__(self, n: int) -> None:
        self.left = n if dist.get_rank() == 1 else 0

    def __call__(self, y: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise RuntimeError("no memory left here")
        return nn.functional.mse_loss(y, target)


def checked(model: nn.Module, batch: Any, loss: Failing) -> None:
    check_module(model, loss, batch, method="projected", group=dist.group.WORLD)


def planted(model: nn.Module, batch: Any, loss: Failing) -> None:
    blind_spots(model, loss, batch, group=dist.group.WORLD)


def state(model: nn.Module, batch: tuple[Tensor, ...]) -> list[object]:
    """All that a check may not change, as far as two ranks could change it."""
    tensors = [*model.parameters(), *model.buffers(), *batch]
    bits = [(id(each), each.data_ptr(), each._version, each.detach().numpy().tobytes()) for each in tensors]
    gradients = [(id(each.grad), each.grad.numpy().tobytes()) for each in model.parameters() if each.grad is not None]
    flags = [(each.training, len(each._forward_hooks), len(each._forward_pre_hooks)) for each in model.modules()]
    rest = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), dist.is_initialized()
    return [bits, gradients, flags, rest, torch.get_rng_state().numpy().tobytes()]


def is_as_it_was(check: Callable[..., None], n: int) -> tuple[bool, str]:
    torch.manual_seed(0)
    model = nn.Sequential(block(Wrong()), nn.BatchNorm1d(6), nn.Dropout(0.5), block(nn.ReLU()))
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    model(batch[0]).square().sum().backward()
    torch.manual_seed(3 + dist.get_rank())
    before, told = state(model, batch), ""
    try:
        check(model, batch, Failing(n))
    except RuntimeError as error:
        told = str(error)
    return state(model, batch) == before, told


@pytest.mark.parametrize("n", [0, 12, 25], ids=["to the end", "noise", "directions"])
def test_a_check_leaves_all_as_it_was(two_ranks: Ranks, n: int) -> None:
    assert two_ranks.run(is_as_it_was, checked, n) == [(True, "no memory left here" if n else "")] * 2


@pytest.mark.parametrize("n", [0, 2], ids=["to the end", "preflight"])
def test_planting_leaves_all_as_it_was(two_ranks: Ranks, n: int) -> None:
    assert two_ranks.run(is_as_it_was, planted, n) == [(True, "no memory left here" if n else "")] * 2
