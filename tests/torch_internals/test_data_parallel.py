"""What torch's data parallelism says of a model: its ranks, the model inside, the precision of its sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.processes.ranks import Ranks
from tests.zoo.kernels import skip_without_fsdp2
from torch_gradcheck.torch_internals.data_parallel import (
    comm_hooks,
    computed_in,
    data_parallel_group,
    reduced_in,
    waiting_for_reduction,
    without_parallel,
)


def of_ddp() -> dict[str, Any]:
    plain = nn.Linear(2, 2)
    model = DistributedDataParallel(plain)
    found: dict[str, Any] = {"group": dist.get_world_size(data_parallel_group(model)), "none": reduced_in(model)}
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return found | {
        "hooks": comm_hooks(model),
        "reduced in": reduced_in(model),
        "inside": without_parallel(model) is plain and without_parallel(plain) is plain,
        "alone": data_parallel_group(plain),
    }


def test_ddp(two_ranks: Ranks) -> None:
    assert two_ranks.run(of_ddp)[0] == {
        "group": 2,
        "none": None,
        "hooks": ["fp16_compress_hook"],
        "reduced in": torch.float16,
        "inside": True,
        "alone": None,
    }


def of_fsdp() -> dict[str, Any]:
    model: Any = fully_shard(nn.Linear(2, 2), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    model.set_requires_gradient_sync(False)
    model(torch.ones(1, 2)).sum().backward()
    waiting = waiting_for_reduction(model)
    model.set_requires_gradient_sync(True)
    model(torch.ones(1, 2)).sum().backward()
    return {
        "group": dist.get_world_size(data_parallel_group(model)),
        "computed in": computed_in(model),
        "reduced in": reduced_in(model),
        "waiting": [waiting, waiting_for_reduction(model)],
    }


def test_fsdp(two_ranks: Ranks) -> None:
    skip_without_fsdp2()
    assert two_ranks.run(of_fsdp)[0] == {
        "group": 2,
        "computed in": torch.bfloat16,
        "reduced in": torch.float32,
        "waiting": [["weight", "bias"], []],
    }


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2))], ids=["plain", "DataParallel"])
def test_a_model_of_one_process(model: nn.Module) -> None:
    assert data_parallel_group(model) is None
    assert reduced_in(model) is None
    assert computed_in(model) is None
    assert not waiting_for_reduction(model)
