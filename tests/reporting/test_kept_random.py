"""A report, a bar and a table leave Python's random numbers alone, in a process that loads rich for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import random
import torch
from torch import nn
from torch_gradcheck import blind_spots, check_module
from torch_gradcheck.reporting.progress import progress_bar

model, x = nn.Linear(3, 2), torch.randn(4, 3)
report = check_module(model, torch.sum, x)
before = random.getstate()
{shown}
assert "rich.table" in __import__("sys").modules, "rich is loaded by what is shown"
assert random.getstate() == before
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "shown",
    ["str(report)", "check_module(model, torch.sum, x, progress=True)", "str(blind_spots(model, torch.sum, x))"],
    ids=["report", "bar", "blind spots"],
)
def test_python_goes_on_drawing_the_same_numbers(shown: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(shown=shown)], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
