from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_gradcheck import check_module
from torch_gradcheck.torch_internals.freed_memory import give_back_freed_memory

BYTES_A_PARAMETER = 36

CLEAR = Path("/proc/self/clear_refs")


class Wide(nn.Module):
    """About 3.5 million parameters in 14 layers, the weight of one of which may get a wrong gradient."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(500, 500), nn.Tanh()) for _ in range(14)])
        if wrong:
            self.get_parameter("layers.3.0.weight").register_hook(without_an_entry)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def without_an_entry(gradient: torch.Tensor) -> torch.Tensor:
    changed = gradient.clone()
    changed[300, 40] = 0
    return changed


def resident(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def bytes_a_parameter(wrong: bool) -> float:
    """The peak of the memory that a check takes beside the model."""
    model, x, y = Wide(wrong), torch.randn(2, 500), torch.randn(2, 500)
    give_back_freed_memory()
    CLEAR.write_text("5")
    before = resident("VmRSS")
    report = check_module(model, nn.MSELoss(), (x, y), method="projected", progress=False)
    assert [row.mismatched for row in report.mismatches] == ([1] if wrong else [])
    return (resident("VmHWM") - before) / sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not os.access(CLEAR, os.W_OK), reason="the peak of a process's memory is read from /proc")
def test_a_projected_check_takes_no_more_memory_than_is_said() -> None:
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    right, wrong = map(float, done.stdout.split())
    assert right < BYTES_A_PARAMETER
    assert wrong < BYTES_A_PARAMETER


if __name__ == "__main__":
    small = nn.Linear(3, 2)  # what the first checks import and allocate is no memory of the model's
    small.weight.register_hook(lambda gradient: 2 * gradient)
    check_module(small, nn.MSELoss(), (torch.ones(2, 3), torch.ones(2, 2)), method="projected", progress=False)
    sys.stdout.write(f"{bytes_a_parameter(wrong=False)} {bytes_a_parameter(wrong=True)}")
