"""How long the check of a whole model takes, beside the textbook loop and torch.autograd.gradcheck in slow mode.

    python benchmarks/speed.py                 # writes benchmarks/results/speed.json, about 8 minutes
    python benchmarks/speed.py --quick         # the small model once, writes nothing

The three take turns, so that whatever else the machine does meanwhile falls on all of them; a ratio is the median of
the ratios within a turn. Where all coordinates would take a rival too long, it gets a subset of them, and its time is
extrapolated: each coordinate costs two forwards of the whole model, whichever it is. The loop gets coordinates that
are spread evenly over each parameter, gradcheck the smallest parameters, since it takes parameters as a whole.
Memory is the peak of a fresh process for each model and contestant, beyond what it held before the check.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from environment import environment
from textbook import textbook_gradient
from torch_gradcheck import check_module
from torch_gradcheck.engines.traced.engine import TracedEngine

RESULTS = Path(__file__).parent / "results" / "speed.json"
WIDTH = 150

OURS, LOOP, GRADCHECK = "check_module", "textbook loop", "autograd.gradcheck"
ENOUGH = 2.0
"""Seconds of turns on a model, at least: a turn of milliseconds tells little."""

TRACES = 25
"""How often J is recorded, to know what that takes."""

FEW = 40
"""Coordinates that show a rival's peak memory: it does not grow with their number."""


@dataclass(frozen=True)
class Case:
    """A classifier as its author has it, in float32, and its batch.

    Attributes:
        name: of the model.
        model, inputs, targets: J is the cross-entropy of model(inputs) and the targets.
        subset: at most about this many coordinates for the rivals, None for all.
        wanted: rival to how many times longer than the check it shall take.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    subset: int | None
    wanted: Mapping[str, float]

    @property
    def coordinates(self) -> int:
        """The size of θ."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def in_double(self) -> tuple[nn.Module, Tensor]:
        """The model and the inputs as the rivals need them: in float64, in eval mode."""
        return deepcopy(self.model).double().eval(), self.inputs.double()


@dataclass(frozen=True)
class Timing:
    """What each contestant took on a case.

    Attributes:
        case: the name of the model.
        coordinates: the size of θ.
        tried: contestant to the number of coordinates it really got; its seconds are extrapolated from them.
        seconds: contestant to wall times, one a turn.
        median_seconds: contestant to the median of them.
        times_slower: rival to the median, over the turns, of its time divided by that of the check.
        wanted: rival to what that is to be at least.
        peak_mib: contestant to the peak of a process's memory, beyond what it held before.
        seconds_to_trace: what recording J takes.
        forward_flops: floating-point operations of one forward.
        share_of_limit: the seconds that 2·coordinates forwards would take at the rate of a large matrix product,
            divided by those of the check; above 1 where it leaves out what a coordinate does not move.
    """

    case: str
    coordinates: int
    tried: dict[str, int]
    seconds: dict[str, list[float]]
    median_seconds: dict[str, float]
    times_slower: dict[str, float]
    wanted: Mapping[str, float]
    peak_mib: dict[str, float]
    seconds_to_trace: float
    forward_flops: int
    share_of_limit: float


def small() -> Case:
    """200 coordinates: the fixed costs of a check show here."""
    return case("small MLP 9-10-8-1", mlp(9, 10, 8, 1, last=2), torch.randn(16, 9), 2, None, {})


def digits_sized() -> Case:
    """8,970 coordinates: the cost of a coordinate shows here."""
    model, wanted = mlp(64, 64, 64, last=10), {LOOP: 12.0, GRADCHECK: 25.0}
    return case("MLP 64-64-64-10", model, torch.randn(32, 64), 10, None, wanted)


def lenet() -> Case:
    """LeNet-5 as published, on images of 32 × 32."""
    features = [nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    model = nn.Sequential(*features, nn.Flatten(), *mlp(400, 120, 84, last=10))
    return case("LeNet-5", model, torch.randn(8, 1, 32, 32), 10, 1200, {LOOP: 40.0})


class Encoder(nn.Module):
    """Two layers of nn.TransformerEncoder and a classifier on the mean of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, nhead=2, dim_feedforward=48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, 4)."""
        scores: Tensor = self.head(self.encoder(x).mean(1))
        return scores


def transformer() -> Case:
    """A transformer encoder on 8 sequences of 12."""
    return case("transformer encoder", Encoder(), torch.randn(8, 12, 24), 4, 1200, {LOOP: 10.0, GRADCHECK: 20.0})


class LastState(nn.Module):
    """An LSTM and a classifier on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 28, batch_first=True)
        self.head = nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, 5)."""
        scores: Tensor = self.head(self.lstm(x)[0][:, -1])
        return scores


def lstm() -> Case:
    """An LSTM on 8 sequences of 10."""
    return case("LSTM", LastState(), torch.randn(8, 10, 12), 5, 1200, {LOOP: 5.0, GRADCHECK: 10.0})


class AffineFunction(torch.autograd.Function):
    """x·Wᵀ + b with its backward by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        """The affine map."""
        ctx.save_for_backward(x, W)
        return x @ W.T + b

    @staticmethod
    def backward(ctx: Any, dZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dX, dW, db."""
        x, W = ctx.saved_tensors
        return dZ @ W, dZ.T @ x, dZ.sum(0)


class SwishFunction(torch.autograd.Function):
    """x·σ(x) with its backward by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The activation."""
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, dA: Tensor) -> Tensor:
        """The slope of the activation times dA."""
        (x,) = ctx.saved_tensors
        σ = torch.sigmoid(x)
        dX: Tensor = dA * (σ + x * σ * (1 - σ))
        return dX


class ByHand(nn.Linear):
    """A linear layer and its activation through custom autograd.Functions."""

    def forward(self, x: Tensor) -> Tensor:
        """What the layer puts out."""
        Z = AffineFunction.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        outputs: Tensor = SwishFunction.apply(Z)  # type: ignore[no-untyped-call]
        return outputs


def custom_functions() -> Case:
    """A network of custom autograd.Functions."""
    model = nn.Sequential(ByHand(32, 64), ByHand(64, 40), ByHand(40, 10))
    return case("custom autograd.Functions", model, torch.randn(32, 32), 10, None, {LOOP: 10.0, GRADCHECK: 20.0})


CASES: dict[str, Callable[[], Case]] = {
    "small": small,
    "mlp": digits_sized,
    "lenet": lenet,
    "transformer": transformer,
    "lstm": lstm,
    "custom": custom_functions,
}


def mlp(*units: int, last: int) -> nn.Sequential:
    """A tanh network whose last layer is linear."""
    layers: list[nn.Module] = []
    for before, after in pairwise(units):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(units[-1], last))


def case(
    name: str, model: nn.Module, inputs: Tensor, classes: int, subset: int | None, wanted: Mapping[str, float]
) -> Case:
    """A case with every class among the targets."""
    return Case(name, model, inputs, torch.arange(len(inputs)) % classes, subset, wanted)


def built(key: str) -> Case:
    """The case, the same one each time."""
    torch.manual_seed(0)
    return CASES[key]()


def whole_check(case: Case, _: int | None) -> int:
    """The check of this package, on every coordinate."""
    report = check_module(case.model, nn.CrossEntropyLoss(), (case.inputs, case.targets), progress=False)
    report.raise_if_failed()
    return case.coordinates


def textbook_loop(case: Case, subset: int | None) -> int:
    """Two forwards a coordinate, in place, on every n-th coordinate of each parameter."""
    model, inputs = case.in_double()
    stride = 1 if subset is None else -(-case.coordinates // subset)
    chosen = [parameter.detach().view(-1)[::stride] for parameter in model.parameters()]
    textbook_gradient(chosen, lambda: F.cross_entropy(model(inputs), case.targets))
    return sum(part.numel() for part in chosen)


def autograd_gradcheck(case: Case, subset: int | None) -> int:
    """torch.autograd.gradcheck in slow mode, which compares every coordinate of what it is given too."""
    model, inputs = case.in_double()
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    chosen = {name: parameters[name].requires_grad_() for name in smallest(parameters, subset)}

    def J(*values: Tensor) -> Tensor:
        moved = parameters | dict(zip(chosen, values, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, moved, inputs), case.targets)

    torch.autograd.gradcheck(J, tuple(chosen.values()), fast_mode=False)
    return sum(value.numel() for value in chosen.values())


def smallest(parameters: Mapping[str, Tensor], subset: int | None) -> list[str]:
    """The names of the smallest parameters, as many as fit into the subset; at least one."""
    ranked = sorted(parameters, key=lambda name: parameters[name].numel())
    if subset is None:
        return ranked
    total, names = 0, list[str]()
    for name in ranked:
        total += parameters[name].numel()
        if names and total > subset:
            break
        names.append(name)
    return names


CONTESTANTS: dict[str, Callable[[Case, int | None], int]] = {
    OURS: whole_check,
    LOOP: textbook_loop,
    GRADCHECK: autograd_gradcheck,
}


def timing(key: str, repeats: int, rate: float) -> Timing:
    """Times the contestants on a case, in turns, after one turn on the small model that is not counted.

    Args:
        key: of the case.
        repeats: turns, more of them where these are over in no time; 1 is 1.
        rate: floating-point operations a second that the machine is capable of.
    """
    for contestant in CONTESTANTS.values():
        contestant(built("small"), None)
    case = built(key)
    tried: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    started = perf_counter()
    while len(seconds[OURS]) < repeats or (repeats > 1 and perf_counter() - started < ENOUGH):
        for name, contestant in CONTESTANTS.items():
            start = perf_counter()
            tried[name] = contestant(case, case.subset)
            seconds[name].append((perf_counter() - start) * case.coordinates / tried[name])
    medians = {name: median(times) for name, times in seconds.items()}
    flops = forward_flops(case)
    return Timing(
        case=case.name,
        coordinates=case.coordinates,
        tried=tried,
        seconds=seconds,
        median_seconds=medians,
        times_slower={rival: median_ratio(seconds[rival], seconds[OURS]) for rival in (LOOP, GRADCHECK)},
        wanted=case.wanted,
        peak_mib={name: peak_memory(key, name) for name in CONTESTANTS},
        seconds_to_trace=median(seconds_to_trace(case) for _ in range(TRACES)),
        forward_flops=flops,
        share_of_limit=2 * case.coordinates * flops / rate / medians[OURS],
    )


def median_ratio(rival: list[float], ours: list[float]) -> float:
    """How many times longer the rival took, turn against turn."""
    return median(theirs / own for theirs, own in zip(rival, ours, strict=True))


def seconds_to_trace(case: Case) -> float:
    """What recording J takes."""
    model, inputs = case.in_double()
    engine = TracedEngine(lambda: F.cross_entropy(model(inputs), case.targets), list(model.parameters()))
    return engine.seconds_to_trace


def forward_flops(case: Case) -> int:
    """Floating-point operations of the matrix products and convolutions in one forward, additions counted too."""
    model, inputs = case.in_double()
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    return int(counter.get_total_flops())


def matrix_product_rate(size: int = 1024, repeats: int = 9) -> float:
    """Floating-point operations a second in a large float64 matrix product, the best of a few."""
    A, B = torch.randn(2, size, size, dtype=torch.float64)
    best = min(seconds_of(partial(torch.matmul, A, B)) for _ in range(repeats))
    return 2 * size**3 / best


def seconds_of(call: Callable[[], object]) -> float:
    """The wall time of one call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def peak_memory(key: str, contestant: str) -> float:
    """The MiB that a contestant needs on a case, measured in a process of its own; NaN where it cannot be."""
    command = [sys.executable, __file__, "--memory-of", key, contestant]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def own_peak_memory(key: str, contestant: str) -> float:
    """The same, in this process: the peak of its resident memory beyond what it held before, in MiB."""
    case = built(key)
    case.model(case.inputs)
    CONTESTANTS[contestant](built("small"), FEW)  # what is imported and allocated at the first call is not the check's
    peak, before = Path("/proc/self/clear_refs"), resident("VmRSS")
    if not peak.exists():
        return float("nan")
    peak.write_text("5")  # Linux forgets the peak there was
    CONTESTANTS[contestant](case, FEW)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """A field of this process's status, in KiB, 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def table(timings: Iterable[Timing]) -> Table:
    """One row a case and contestant."""
    rows = Table("case", "coordinates", "check", "median", "times slower", "wanted", "peak memory", "share of limit")
    for row in timings:
        for name, seconds in row.median_seconds.items():
            subset = f" (of {row.tried[name]:,})" if row.tried[name] < row.coordinates else ""
            rows.add_row(
                row.case if name == OURS else "",
                f"{row.coordinates:,}{subset}",
                name,
                f"{seconds:.3f} s",
                f"{row.times_slower[name]:.1f}" if name in row.times_slower else "",
                f"{row.wanted[name]:g}" if name in row.wanted else "",
                f"{row.peak_mib[name]:.0f} MiB",
                f"{row.share_of_limit:.0%}" if name == OURS else "",
                end_section=name == GRADCHECK,
            )
    return rows


def main() -> None:
    """Reads the command line, times, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns on each model, or more (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one turn on the small model; writes nothing")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name}, if not quick)")
    parser.add_argument("--memory-of", nargs=2, metavar=("CASE", "CONTESTANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(own_peak_memory(*arguments.memory_of))
        return

    rate = matrix_product_rate()
    keys, repeats = (["small"], 1) if arguments.quick else (arguments.cases, arguments.repeats)
    timings = [timing(key, repeats, rate) for key in keys]
    Console(width=WIDTH).print(table(timings))
    path = arguments.json or (None if arguments.quick else RESULTS)
    if path:
        facts = {"environment": environment(), "matrix_product_gflops": rate / 1e9}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(facts | {"timings": [asdict(row) for row in timings]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
