"""A rank that dies in the middle of a check ends the others at once, with an error that says so."""

from __future__ import annotations

import os
import signal

import pytest
import torch.distributed as dist

from tests.processes.ranks import Ranks
from tests.processes.test_endings import LIMIT, SHARE, Faulty, batch, small_model
from torch_gradcheck import check_module


def killed(rank: int) -> tuple[str, str]:
    loss = Faulty(rank, SHARE, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        check_module(small_model(), loss, batch(), group=dist.group.WORLD)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1], ids=["leader", "other"])
def test_a_rank_that_is_killed_ends_the_others(rank: int) -> None:
    ranks = Ranks(2)
    outcomes = ranks.outcomes(killed, rank, timeout=LIMIT)
    assert not outcomes[rank][0]
    returned, (kind, text) = outcomes[1 - rank]
    assert returned
    assert kind == "ProcessGroupError"
    assert f"rank {rank} has ended" in text
