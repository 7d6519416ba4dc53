"""How long an exact check takes, beside the textbook loop and torch.autograd.gradcheck in slow mode, in one run.

    python benchmarks/loop.py              # writes benchmarks/results/loop.json, 1 minute
    python benchmarks/loop.py --quick      # the small model once, writes nothing

The three take turns, so that whatever else the machine does meanwhile falls on all of them; a ratio is the median of
the ratios within a turn. They have one thread unless told otherwise: on kernels as small as these, a second one waits
more than it works, and the rivals, which run most of them, would look slower than they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call

from environment import environment
from textbook import textbook_check
from torch_gradcheck import check_module

RESULTS = Path(__file__).parent / "results" / "loop.json"


@dataclass(frozen=True)
class Case:
    """A classifier in float64 and its batch: every contestant finds it ready, none has to convert it."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def coordinates(self) -> int:
        """The size of θ."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True)
class Timing:
    """What each contestant took on a case, turn by turn.

    Attributes:
        case: the name of the model.
        coordinates: the size of θ.
        seconds: contestant to wall times, one a turn.
        median_seconds: contestant to the median of them.
        times_slower: rival to the median, over the turns, of its time divided by that of torch_gradcheck.
    """

    case: str
    coordinates: int
    seconds: dict[str, list[float]]
    median_seconds: dict[str, float]
    times_slower: dict[str, float]


def small_mlp() -> Case:
    """206 coordinates: the fixed costs of a check show here."""
    return mlp("MLP 9-10-8-2", (9, 10, 8, 2), batch_size=16)


def digits_sized_mlp() -> Case:
    """8,970 coordinates: the cost of a coordinate shows here."""
    return mlp("MLP 64-64-64-10", (64, 64, 64, 10), batch_size=32)


def mlp(name: str, units: tuple[int, ...], batch_size: int) -> Case:
    """A tanh network with random weights, on random inputs and targets."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(units):
        layers += [nn.Linear(before, after), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    return Case(name, model, torch.randn(batch_size, units[0]).double(), torch.randint(units[-1], (batch_size,)))


def torch_gradcheck(case: Case) -> None:
    """The check of this package, on every coordinate."""
    batch = (case.inputs, case.targets)
    check_module(case.model, nn.CrossEntropyLoss(), batch, method="exact", progress=False).raise_if_failed()


def textbook_loop(case: Case) -> None:
    """Two forwards a coordinate, in place."""
    ratio = textbook_check(case.model, lambda: nn.functional.cross_entropy(case.model(case.inputs), case.targets))
    if not ratio < 1e-5:
        raise AssertionError(f"the textbook loop finds {ratio:.1e} on {case.name}, a model whose gradients are right")


def autograd_gradcheck(case: Case) -> None:
    """torch.autograd.gradcheck in slow mode, which compares every coordinate too."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in case.model.named_parameters()}

    def J(*values: Tensor) -> Tensor:
        scores = functional_call(case.model, dict(zip(parameters, values, strict=True)), case.inputs)
        return nn.functional.cross_entropy(scores, case.targets)

    torch.autograd.gradcheck(J, tuple(parameters.values()), fast_mode=False)


CONTESTANTS: dict[str, Callable[[Case], None]] = {
    "torch_gradcheck": torch_gradcheck,
    "textbook loop": textbook_loop,
    "autograd.gradcheck": autograd_gradcheck,
}


def timing(case: Case, repeats: int) -> Timing:
    """Times the contestants on a case, in turns, after one turn on the small model that is not counted."""
    for check in CONTESTANTS.values():
        check(small_mlp())
    turns = [{name: seconds_of(check, case) for name, check in CONTESTANTS.items()} for _ in range(repeats)]
    rivals = [name for name in CONTESTANTS if name != "torch_gradcheck"]
    return Timing(
        case=case.name,
        coordinates=case.coordinates,
        seconds={name: [turn[name] for turn in turns] for name in CONTESTANTS},
        median_seconds={name: median(turn[name] for turn in turns) for name in CONTESTANTS},
        times_slower={name: median(turn[name] / turn["torch_gradcheck"] for turn in turns) for name in rivals},
    )


def seconds_of(check: Callable[[Case], None], case: Case) -> float:
    """The wall time of one check."""
    start = perf_counter()
    check(case)
    return perf_counter() - start


def table(timings: Iterable[Timing]) -> Table:
    """One row a case and contestant."""
    rows = Table("case", "coordinates", "check", "median", "times slower")
    for row in timings:
        for name, seconds in row.median_seconds.items():
            slower = f"{row.times_slower[name]:.1f}" if name in row.times_slower else ""
            rows.add_row(row.case, f"{row.coordinates:,}", name, f"{seconds:.3f} s", slower)
    return rows


def main() -> None:
    """Reads the command line, times, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns on each model (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one turn on the small model; writes nothing")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    cases = [small_mlp()] if arguments.quick else [small_mlp(), digits_sized_mlp()]
    timings = [timing(case, 1 if arguments.quick else arguments.repeats) for case in cases]
    Console().print(table(timings))
    if not arguments.quick:
        figures = {"environment": environment(), "timings": [asdict(row) for row in timings]}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
