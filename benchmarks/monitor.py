"""What a GradientMonitor costs a training script: on steps that are not scheduled, and on one that is.

    python benchmarks/monitor.py              # writes benchmarks/results/monitor.json, half a minute
    python benchmarks/monitor.py --quick      # fewer turns, writes nothing

The step of training and the call of the monitor take turns, so that whatever else the machine does meanwhile falls on
both; figures are medians over the turns. One thread.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from environment import environment
from torch_gradcheck import GradientMonitor, check_module

Batch = tuple[Tensor, Tensor]
loss_fn = nn.CrossEntropyLoss()

RESULTS = Path(__file__).parent / "results" / "monitor.json"
CALLS = 10_000
"""Unscheduled calls that are timed together."""


@dataclass(frozen=True)
class Figures:
    """Medians over the turns.

    Attributes:
        coordinates: the size of θ.
        microseconds_unscheduled: of one call of `step` on a step that is not scheduled.
        microseconds_empty: of one call of a method that does nothing, in the same turns.
        milliseconds_training_step: of forward, backward and optimizer.
        unscheduled_per_training_step: the first by the third.
        seconds_scheduled: of one call of `step` on a scheduled step: both halves.
        scheduled_per_check: that by the time of `check_module` alone.
    """

    coordinates: int
    microseconds_unscheduled: float
    microseconds_empty: float
    milliseconds_training_step: float
    unscheduled_per_training_step: float
    seconds_scheduled: float
    scheduled_per_check: float


class Empty:
    """The least a call can cost."""

    def step(self, batch: Batch) -> None:
        """Nothing."""


def turn(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Each thing once: seconds."""
    idle, empty = GradientMonitor(model, loss_fn, at=[10**9]), Empty()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seconds = {}
    for name, target in (("unscheduled", idle), ("empty", empty)):
        start = perf_counter()
        for _ in range(CALLS):
            target.step(batch)
        seconds[name] = (perf_counter() - start) / CALLS
    with GradientMonitor(model, loss_fn) as monitor:
        start = perf_counter()
        optimizer.zero_grad()
        loss_fn(model(batch[0]), batch[1]).backward()
        middle = perf_counter()
        monitor.step(batch)
        checked = perf_counter()
        optimizer.step()
        seconds["training"] = middle - start + perf_counter() - checked
        seconds["scheduled"] = checked - middle
    start = perf_counter()
    check_module(model, loss_fn, batch)
    return seconds | {"check": perf_counter() - start}


def figures(turns: int) -> Figures:
    """A classifier as large as that of examples/train_digits.py, after a turn that is not counted."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )
    batch = torch.rand(50, 64), torch.randint(0, 10, (50,))
    turn(model, batch)
    taken = [turn(model, batch) for _ in range(turns)]
    typical = {name: median(each[name] for each in taken) for name in taken[0]}
    return Figures(
        coordinates=sum(parameter.numel() for parameter in model.parameters()),
        microseconds_unscheduled=1e6 * typical["unscheduled"],
        microseconds_empty=1e6 * typical["empty"],
        milliseconds_training_step=1e3 * typical["training"],
        unscheduled_per_training_step=median(each["unscheduled"] / each["training"] for each in taken),
        seconds_scheduled=typical["scheduled"],
        scheduled_per_check=median(each["scheduled"] / each["check"] for each in taken),
    )


def main() -> None:
    """Reads the command line, times, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns; writes nothing")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    found = asdict(figures(2 if arguments.quick else 15))
    for name, value in found.items():
        print(f"{name:32} {value:.4g}")
    if not arguments.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"environment": environment(), "figures": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
