"""What some processors, or some versions of torch, lack: a test that needs it skips and says why."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from tests.zoo.training import Regime


def skip_without_lstm(regime: Regime) -> None:
    """Skips the test where this processor has no LSTM kernel for the regime.

    oneDNN has the one for bfloat16 autocast on processors with AVX-512 only, and the one for float16 autocast on few.
    """
    if why := _why_no_lstm(regime):
        pytest.skip(f"no LSTM in {regime.weights} with autocast {regime.autocast} on this processor: {why}")


def skip_without_fsdp2() -> None:
    """Skips the test where FSDP2 runs no forward on a CPU, as in torch 2.6: it asks the CPU's stream for an event."""
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip(f"FSDP2 of torch {torch.__version__} does not run on a CPU")


@functools.cache
def _why_no_lstm(regime: Regime) -> str:
    """What torch says of an LSTM's forward and backward in the regime; "" where both run."""
    lstm, x = nn.LSTM(3, 4, batch_first=True).to(regime.weights), torch.zeros(5, 6, 3, dtype=regime.weights)
    try:
        with regime.context:
            last = lstm(x)[0][:, -1]
        last.sum().backward()
    except RuntimeError as error:
        return str(error).partition(".")[0]
    return ""
