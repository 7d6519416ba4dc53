"""A J that talks to other ranks is refused, and named; it would wait for them without end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import InvalidRequestError, check_module


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x


class FunctionallySummed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        from torch.distributed import _functional_collectives as functional

        return functional.all_reduce(x, "sum", dist.group.WORLD)


class CopyToRanks(torch.autograd.Function):
    """As Megatron's: x, whose gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class Copied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = CopyToRanks.apply(x)
        return result


class Sent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        (dist.send if dist.get_rank() else dist.recv)(x.detach().clone(), 1 - dist.get_rank())
        return x


class Distributed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Replicate

        return DTensor.from_local(x, init_device_mesh("cpu", (2,)), [Replicate()]).sin().to_local()


class OfOneRank(nn.Module):
    """Over a group of one rank nobody has to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.group = [dist.new_group([rank]) for rank in range(2)][dist.get_rank()]

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x.detach(), group=self.group)
        return x


def outcome(make: Callable[[], nn.Module], mode: str) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), make())
    try:
        passed = check_module(model, lambda y: y.square().sum(), torch.ones(3, 2), mode=mode).passed  # type: ignore[arg-type]
    except InvalidRequestError as error:
        return str(error)
    return f"passed: {passed}"


CASES = {
    "all_reduce": (Summed, "the forward of '1' (Summed) calls allreduce of torch.distributed, which"),
    "functional": (
        FunctionallySummed,
        "the forward of '1' (FunctionallySummed) calls all_reduce of torch.distributed, which",
    ),
    "backward": (Copied, "the backward of CopyToRanks calls allreduce of torch.distributed, which"),
    "dtensor": (Distributed, "the forward of '1' (Distributed) computes with a DTensor that it makes itself"),
    "one rank": (OfOneRank, "passed: True"),
}


@pytest.mark.parametrize(("make", "message"), CASES.values(), ids=list(CASES))
def test_a_collective_is_refused_by_name(two_ranks: Ranks, make: Callable[[], nn.Module], message: str) -> None:
    for found in two_ranks.run(outcome, make, "eval"):
        assert found.startswith(message)


def test_a_message_to_another_rank_is_refused(two_ranks: Ranks) -> None:
    receives, sends = two_ranks.run(outcome, Sent, "eval")
    assert receives.startswith("the forward of '1' (Sent) calls recv")
    assert sends.startswith("the forward of '1' (Sent) calls send")


def synchronised() -> nn.Module:
    return nn.SyncBatchNorm(2)


def test_statistics_of_all_ranks_are_refused(two_ranks: Ranks) -> None:
    for found in two_ranks.run(outcome, synchronised, "train"):
        assert found.startswith("'1' (SyncBatchNorm) takes the statistics of the batches of all ranks")
    assert two_ranks.run(outcome, synchronised, "eval") == ["passed: True"] * 2
