"""States of random generators, sent to another process and put back there."""

from __future__ import annotations

import pickle
import random

import numpy as np
import torch

from torch_gradcheck.borrowing.random_state import RandomState


def draws(own: torch.Generator) -> list[float]:
    return [torch.rand(()).item(), np.random.random(), random.random(), torch.rand((), generator=own).item()]


def test_states_that_were_sent_give_the_same_draws() -> None:
    here, there = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    before = RandomState.of_everything([here, there])
    sent = pickle.dumps(RandomState.of_everything([here]).states)
    expected = draws(here)
    RandomState.received(pickle.loads(sent), [there]).restore()
    assert draws(there) == expected
    before.restore()
