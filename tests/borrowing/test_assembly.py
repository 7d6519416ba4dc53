"""Models made whole for a check, in a group of one rank: what an interrupt leaves, and what is told."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.zoo.kernels import skip_without_fsdp2
from torch_gradcheck.borrowing import assembly
from torch_gradcheck.borrowing.assembly import assembled, shard_rows
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.torch_internals.sharded import is_sharded


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    skip_without_fsdp2()
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    fully_shard(model[0], reshard_after_forward=False)
    fully_shard(model)
    model(torch.ones(1, 3))
    return model


def state_of(model: nn.Module) -> list[Any]:
    return [
        (list(each._parameters.items()), list(each._forward_hooks.items()), sorted(vars(each)))
        for each in model.modules()
    ]


def test_all_is_whole_inside_and_as_it_was_after() -> None:
    model = sharded()
    before = state_of(model)
    with assembled(model) as whole:
        assert [is_sharded(each) for each in model.parameters()] == [False] * 4
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
        inside = state_of(model)
        with assembled(model):
            assert state_of(model) == inside
        assert state_of(model) == inside
    assert state_of(model) == before
    assert whole.notes == []


@pytest.mark.parametrize("raising", [False, True], ids=["signal", "exception"])
def test_an_interrupt_while_a_model_is_made_whole_leaves_it_as_it_was(
    raising: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = sharded(), []

    def connected(tensor: torch.Tensor) -> None:
        calls.append(tensor)
        if raising:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(assembly, "connect_hooks", connected)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt), assembled(model):
        pytest.fail("the block was entered")
    assert len(calls) == (1 if raising else 4)
    assert state_of(model) == before


def test_two_objects_on_one_shard_share_their_numbers() -> None:
    model = sharded()
    model[1].reshard() if hasattr(model[1], "reshard") else model.reshard()  # type: ignore[operator]
    weight = model[1].weight
    alias = SimpleNamespace(held=weight.detach())
    with assembled(model, alias), torch.no_grad():
        weight.add_(1.0)
        assert torch.equal(alias.held, weight)
    assert torch.equal(alias.held.full_tensor(), weight.full_tensor())


def test_rows_of_shards_have_the_names_of_parameters() -> None:
    assert shard_rows(sharded()) == {
        "0.weight": [(0, 2)],
        "0.bias": [(0, 2)],
        "1.weight": [(0, 2)],
        "1.bias": [(0, 2)],
    }


def test_a_wrapper_that_may_do_more_is_refused() -> None:
    class Own(nn.parallel.DistributedDataParallel):
        def forward(self, *inputs: torch.Tensor) -> Any:
            return 2 * super().forward(*inputs)

    with pytest.raises(InvalidRequestError, match="Own is a DistributedDataParallel with a forward of its own"):
        assembled(Own(nn.Linear(1, 1))).__enter__()


def test_what_deepspeed_has_taken_away_is_refused() -> None:
    model = nn.Linear(1, 1)
    model.weight = nn.Parameter(torch.empty(0))
    model.weight.ds_id = 1  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError, match="of a Linear is partitioned by DeepSpeed"):
        assembled(model).__enter__()
