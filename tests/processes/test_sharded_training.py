"""What a check leaves of a sharded model: all of it; training goes on bit for bit as it would have without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes import sharded_models as models
from tests.processes.ranks import Ranks
from torch_gradcheck import check_closure, check_module
from torch_gradcheck.torch_internals.sharded import is_sharded, local_tensor


def with_static_graph(model: nn.Module) -> nn.Module:
    return models.ddp(model, static_graph=True)


def with_unused_found(model: nn.Module) -> nn.Module:
    return models.ddp(model, find_unused_parameters=True)


def with_bucket_views(model: nn.Module) -> nn.Module:
    return models.ddp(model, gradient_as_bucket_view=True)


def with_comm_hook(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    wrapped = models.ddp(model)
    wrapped.register_comm_hook(None, fp16_compress_hook)  # type: ignore[operator]
    return wrapped


class Inside(nn.Module):
    """A larger module, part of which is data parallel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.part = models.ddp(model)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.scale * self.part(x)
        return result


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = models.WAYS | {
    each.__name__: each for each in (with_static_graph, with_unused_found, with_bucket_views, with_comm_hook, Inside)
}


def numbers(tensor: Tensor | None) -> list[float] | None:
    """The numbers that this rank holds of a tensor."""
    if tensor is None:
        return None
    own = local_tensor(tensor) if is_sharded(tensor) else tensor
    return own.detach().double().flatten().tolist()  # type: ignore[no-any-return]


def state_of(model: nn.Module) -> list[Any]:
    """What is no number, and has to stay: the very objects, layouts, hooks in their order, flags."""
    parameters = [
        (id(each), type(each), getattr(each, "placements", None), each.dtype, each.shape, id(each.grad), each._version)
        for each in model.parameters()
    ]
    modules = [
        (type(each), each.training, list(each._forward_hooks.items()), list(each._forward_pre_hooks.items()))
        for each in model.modules()
    ]
    return [parameters, modules, [sorted(vars(each)) for each in model.modules()]]


def checked(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    before = state_of(model)
    grads = [numbers(each.grad) for each in model.parameters()]
    report = check_module(model, nn.functional.mse_loss, batch, include=["*3.*", "*up.bias"])
    assert report.passed
    assert state_of(model) == before
    assert [numbers(each.grad) for each in model.parameters()] == grads


ALONE = {"with_static_graph", "with_unused_found", "Inside"}
"""Ways in which rank 0 checks, and rank 1 does not know of it."""


def trained(way: str, with_checks: bool) -> list[Any]:
    """The losses and numbers of three steps, with momentum, each rank with a batch of its own."""
    with_checks = with_checks and (way not in ALONE or dist.get_rank() == 0)
    model = WAYS[way](models.plain())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[Any] = []
    for step in range(3):
        x, y = batch = models.batch(seed=step if way == "tensor_parallel" else 10 * step + dist.get_rank())
        look = (lambda batch=batch: checked(model, batch)) if with_checks and step == 1 else (lambda: None)
        optimizer.zero_grad()
        look()
        loss = nn.functional.mse_loss(model(x), y)
        look()
        loss.backward()
        look()
        seen.append(loss.item())
        optimizer.step()
    model.eval()
    state = [numbers(held) for each in optimizer.state.values() for held in each.values() if isinstance(held, Tensor)]
    return [*seen, [numbers(each) for each in model.parameters()], state]


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_bit_for_bit(two_ranks: Ranks, way: str) -> None:
    assert two_ranks.run(trained, way, True) == two_ranks.run(trained, way, False)


def accumulated(with_check: bool) -> list[Any]:
    model = models.ddp(models.plain())
    for k in range(2):
        x, y = models.batch(seed=k + dist.get_rank())
        with model.no_sync() if k == 0 else nullcontext():  # type: ignore[operator]
            loss = nn.functional.mse_loss(model(x), y)
            if with_check:
                checked(model, (x, y))
            loss.backward()
    return [numbers(each.grad) for each in model.parameters()]


def test_accumulation_without_synchronisation_goes_on(two_ranks: Ranks) -> None:
    assert two_ranks.run(accumulated, True) == two_ranks.run(accumulated, False)


def raised_inside(way: str) -> bool:
    model = WAYS[way](models.plain())
    before, inside = state_of(model), []

    def closure() -> Tensor:
        inside.append([type(each) for each in model.parameters()])
        raise KeyboardInterrupt if len(inside) > 2 else ValueError("no loss today")

    with suppress(ValueError, KeyboardInterrupt):
        check_closure(model, closure)
    return state_of(model) == before and bool(inside)


@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensor_parallel"])
def test_an_exception_brings_shards_back(two_ranks: Ranks, way: str) -> None:
    assert two_ranks.run(raised_inside, way) == [True, True]
