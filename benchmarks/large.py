"""Models too large for a difference at every entry: this check beside torch.autograd.gradcheck's fast mode, in one run.

    python benchmarks/large.py             # writes benchmarks/results/large.json, about 10 minutes
    python benchmarks/large.py --quick     # a small model, one seed; writes nothing without --json
    python benchmarks/large.py --only gpt2-medium right   # these checks of gpt2_shapes.py, into the same file

A ResNet-18 for images of 32 × 32 and a GPT-2 of transformers with tied embeddings, in eval mode, with the correct
gradients and with one mistake at a time in them:

    scaled     the gradient of a middle weight times 1.01
    one entry  one entry of a large weight's gradient set to 0; it is the one of median size
    flipped    the sign of the gradient of a normalisation's bias

Contestants take turns, on one model object in float64. The fast mode of gradcheck, with its default tolerances, is
given all parameters as inputs of J; where it fails it goes on to compute everything in slow mode for its message, which
would take days: that part is cut off. Then this check alone: 1e-4 of the gradient in one tensor, and correct
models, over seeds that draw weights, batch and the check's own directions.

Last the shapes of GPT-2 small and medium, in float32, right and with one wrong entry: see `gpt2_shapes.py`. Each is
checked in a process of its own, and written when it has ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from environment import environment
from gpt2_shapes import GRADIENTS, SHAPES, TINY, Figures, measured, of_this_process
from torch_gradcheck import Report, check_module

RESULTS = Path(__file__).parent / "results" / "large.json"

WIDTH = 150
"""Of the printed tables."""

OURS, FAST = "torch_gradcheck", "gradcheck fast_mode"

CORRECT = "none"

ERROR = 1e-4
"""The relative error that must be seen in any single tensor."""

STRIDE = 7
"""From the tensor it is planted in for one seed to that for the next."""

Change = Callable[[Tensor], Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A model in float64 and eval mode, its loss and batch, and where mistakes are planted.

    Attributes:
        planted: mistake to the parameter it is planted in.
    """

    name: str
    model: nn.Module
    loss_fn: Callable[..., Tensor]
    inputs: Tensor
    targets: Tensor
    planted: Mapping[str, str]

    @property
    def coordinates(self) -> int:
        """The size of θ."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True)
class Timing:
    """How the contestants did on one model with one mistake.

    Attributes:
        mistake: "none" for the correct model.
        parameter: where it is.
        seconds: contestant to wall times, one a turn.
        median_seconds: contestant to the median of them.
        times_slower: the median, over the turns, of the fast mode's time divided by that of the check.
        evaluations: of J, by the check.
        accused: contestant to whether it says that something is wrong.
        named: the parameters that the check calls wrong.
        wrong: how many entries of them it calls wrong, and how many are.
        detectable: the relative error of a tensor that the check would have missed with odds of 1e-6, the largest.
    """

    case: str
    coordinates: int
    mistake: str
    parameter: str
    seconds: dict[str, list[float]]
    median_seconds: dict[str, float]
    times_slower: float
    evaluations: int
    accused: dict[str, bool]
    named: list[str]
    wrong: tuple[int, int]
    detectable: float


@dataclass
class Count:
    """How often an error of `size` in single tensors was missed, or a correct model accused.

    Attributes:
        wrong: seed and parameter of each that was.
        undecided: how many rows of all reports were neither right nor wrong.
        seconds: the longest check.
        evaluations: the most evaluations of a check.
    """

    case: str
    size: float
    checks: int
    wrong: list[str]
    undecided: int
    seconds: float
    evaluations: int


# The models -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions with batch normalisation and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """What the block puts out."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 for images of 32 × 32: a first convolution of 3 × 3, no pooling behind it.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR (2016), sections 3.3 and 4.2.
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for number, width in enumerate(widths, 1):
            strides = [1 if number == 1 else 2] + [1] * (blocks - 1)
            layer = [Block(before if k == 0 else width, width, stride) for k, stride in enumerate(strides)]
            self.add_module(f"layer{number}", nn.Sequential(*layer))
            before = width
        self.layers = len(widths)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.layers + 1):
            x = self.get_submodule(f"layer{number}")(x)
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


def resnet() -> Case:
    """ResNet-18, 11,173,962 parameters, on two images."""
    planted = {
        "scaled": "layer2.1.conv1.weight",
        "one entry": "layer4.1.conv1.weight",
        "flipped": "layer3.0.bn2.bias",
    }
    return case("ResNet-18", ResNet(), nn.CrossEntropyLoss(), torch.randn(2, 3, 32, 32), torch.tensor([3, 7]), planted)


def small_resnet() -> Case:
    """The same, in the small: 5,266 parameters."""
    planted = {"scaled": "layer1.0.conv1.weight", "one entry": "layer2.0.conv2.weight", "flipped": "layer1.0.bn2.bias"}
    model = ResNet((8, 16), blocks=1)
    return case("small ResNet", model, nn.CrossEntropyLoss(), torch.randn(2, 3, 8, 8), torch.tensor([3, 7]), planted)


def next_token(outputs: Any, tokens: Tensor) -> Tensor:
    """The loss of a language model, as transformers has it, in the precision of the scores."""
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gpt() -> Case:
    """A GPT-2 of transformers with tied embeddings, 9,983,040 parameters, on two texts of 32 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=4096, n_positions=128, n_embd=320, n_layer=7, n_head=5, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.randint(0, config.vocab_size, (2, 32))
    planted = {
        "scaled": "transformer.h.3.mlp.c_fc.weight",
        "one entry": "transformer.h.6.mlp.c_proj.weight",
        "flipped": "transformer.h.3.ln_1.bias",
    }
    return case("GPT-2", GPT2LMHeadModel(config), next_token, tokens, tokens, planted)


CASES: dict[str, Callable[[], Case]] = {"resnet": resnet, "gpt": gpt}
SMALL: dict[str, Callable[[], Case]] = {"small-resnet": small_resnet}


def case(
    name: str,
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    inputs: Tensor,
    targets: Tensor,
    planted: Mapping[str, str],
) -> Case:
    """The case in float64 and eval mode."""
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return Case(name, model.double().eval(), loss_fn, inputs, targets, planted)


def built(key: str, seed: int = 0) -> Case:
    """The case of that name, the same one for the same seed."""
    torch.manual_seed(seed)
    return (CASES | SMALL)[key]()


# The mistakes -----------------------------------------------------------------------------------------------------


def one_entry_zeroed(gradient: Tensor) -> Tensor:
    """The gradient without its entry of median size among those that are not 0."""
    flat = gradient.flatten().clone()
    sizes = flat.abs()
    order = sizes.argsort()
    known = int((sizes > 0).sum())
    flat[order[len(flat) - known + known // 2 if known else 0]] = 0
    return flat.view_as(gradient)


MISTAKES: dict[str, Change] = {
    "scaled": lambda gradient: gradient * 1.01,
    "one entry": one_entry_zeroed,
    "flipped": lambda gradient: -gradient,
}


@contextmanager
def changed(model: nn.Module, parameter: str, change: Change) -> Iterator[None]:
    """A mistake in the gradient of one of the model's parameters, for the time of the block."""
    hook = model.get_parameter(parameter).register_hook(change)
    try:
        yield
    finally:
        hook.remove()


# The contestants --------------------------------------------------------------------------------------------------


def check(case: Case, seed: int = 0) -> Report:
    """This check."""
    batch = (case.inputs, case.targets)
    return check_module(case.model, case.loss_fn, batch, method="projected", seed=seed, progress=False)


def fast_mode_accuses(case: Case, parameter: str, change: Change | None) -> bool:
    """Whether torch.autograd.gradcheck(fast_mode=True) raises."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in case.model.named_parameters()}

    def J(*values: Tensor) -> Tensor:
        lent = dict(zip(parameters, values, strict=True))
        if change is not None:
            through = lent[parameter].view_as(lent[parameter])
            if through.requires_grad:
                through.register_hook(lambda g: None if g is None else change(g))  # gradcheck tries None, too
            lent = {**lent, parameter: through}
        return case.loss_fn(functional_call(case.model, lent, case.inputs), case.targets)

    slow_mode = "torch.autograd.gradcheck._run_slow_mode_and_get_error"
    try:
        with patch(slow_mode, return_value=""):
            torch.autograd.gradcheck(J, tuple(parameters.values()), fast_mode=True)
    except GradcheckError:
        return True
    return False


def timing(case: Case, mistake: str, repeats: int) -> Timing:
    """Times both contestants in turns, after a check that is not counted."""
    parameter = case.planted.get(mistake, "")
    change = MISTAKES.get(mistake)
    seconds: dict[str, list[float]] = {OURS: [], FAST: []}
    for _ in range(repeats):
        report, taken = timed(lambda: check_with(case, parameter, change))
        seconds[OURS].append(taken)
        accuses, taken = timed(lambda: fast_mode_accuses(case, parameter, change))
        seconds[FAST].append(taken)
    return Timing(
        case=case.name,
        coordinates=case.coordinates,
        mistake=mistake,
        parameter=parameter,
        seconds=seconds,
        median_seconds={name: median(times) for name, times in seconds.items()},
        times_slower=median(theirs / own for theirs, own in zip(seconds[FAST], seconds[OURS], strict=True)),
        evaluations=report.evaluations,
        accused={OURS: bool(report.mismatches), FAST: accuses},
        named=[row.name for row in report.mismatches],
        wrong=(sum(row.mismatched for row in report.mismatches), truly_wrong(case, parameter, change)),
        detectable=max(row.detectable for row in report),
    )


def check_with(case: Case, parameter: str, change: Change | None, seed: int = 0) -> Report:
    """This check, with a mistake or without."""
    if change is None:
        return check(case, seed)
    with changed(case.model, parameter, change):
        return check(case, seed)


def truly_wrong(case: Case, parameter: str, change: Change | None) -> int:
    """How many entries a mistake changes."""
    if change is None:
        return 0
    loss = case.loss_fn(case.model(case.inputs), case.targets)
    (gradient,) = torch.autograd.grad(loss, [case.model.get_parameter(parameter)])
    return int((change(gradient) != gradient).sum())


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and its wall time."""
    start = perf_counter()
    result = call()
    return result, perf_counter() - start


# Errors of 1e-4, and none -----------------------------------------------------------------------------------------


def sensitivity(key: str, seeds: Sequence[int]) -> Count:
    """An error of `ERROR` in a single tensor, another one for each seed."""
    count = Count("", ERROR, 0, [], 0, 0.0, 0)
    for seed in seeds:
        subject = built(key, seed)
        names = [name for name, _ in subject.model.named_parameters()]
        name = names[STRIDE * seed % len(names)]
        report = check_with(subject, name, lambda gradient: gradient * (1 + ERROR), seed)
        add(count, subject, report, [row.name for row in report.mismatches] != [name], f"seed {seed}: {name}")
    return count


def false_alarms(key: str, seeds: Sequence[int]) -> Count:
    """The correct model."""
    count = Count("", 0.0, 0, [], 0, 0.0, 0)
    for seed in seeds:
        subject = built(key, seed)
        report = check(subject, seed)
        add(count, subject, report, bool(report.mismatches), f"seed {seed}")
    return count


def add(count: Count, case: Case, report: Report, wrong: bool, where: str) -> None:
    """One more check."""
    count.case = case.name
    count.checks += 1
    count.wrong += [where] if wrong else []
    count.undecided += sum(row.status == "undecided" for row in report)
    count.seconds = max(count.seconds, report.seconds)
    count.evaluations = max(count.evaluations, report.evaluations)


# Memory -----------------------------------------------------------------------------------------------------------


def peak_memory(key: str) -> float:
    """The MiB that a check needs, measured in a process of its own; NaN where it cannot be."""
    command = [sys.executable, __file__, "--memory-of", key]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def own_peak_memory(key: str) -> float:
    """The same, in this process: the peak of its resident memory beyond what it held before, in MiB."""
    subject = built(key)
    check(built("small-resnet"))  # what is imported and allocated at the first call is not the check's
    peak, before = Path("/proc/self/clear_refs"), resident("VmRSS")
    if not peak.exists():
        return float("nan")
    peak.write_text("5")  # Linux forgets the peak there was
    check(subject)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """A field of this process's status, in KiB, 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


# GPT-2's shapes ---------------------------------------------------------------------------------------------------


def check_shapes(
    console: Console,
    asked: Sequence[tuple[str, str]],
    path: Path | None,
    figures_of: Callable[[str, str], Figures] = measured,
) -> None:
    """Prints the figures of these shapes and gradients; each joins those in the file as soon as it is there."""
    for shape, gradients in asked:
        console.print(f"{shape}, {gradients} ...")
        figures = figures_of(shape, gradients)
        console.print(
            f"  {figures.seconds:.0f} s ({figures.cpu_seconds:.0f} CPU-s), {figures.peak_bytes / 2**30:.2f} GiB, "
            f"{figures.bytes_a_parameter:.1f} bytes a parameter, {figures.evaluations} evaluations, "
            f"{f'{figures.wrong} wrong' if figures.named else 'right'}"
        )
        if path:
            add_to(path, figures)


def add_to(path: Path, figures: Figures) -> None:
    """Writes the figures of one check into a file of results, in the place of older ones of that check."""
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    key = (figures.shape, figures.gradients)
    others = [each for each in facts.get("shapes", []) if (each["shape"], each["gradients"]) != key]
    facts["shapes"] = [*others, asdict(figures) | {"environment": environment()}]
    write(path, facts)


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes a file of results."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n")


# The run ----------------------------------------------------------------------------------------------------------


def table(timings: Iterable[Timing]) -> Table:
    """One row a model and mistake."""
    rows = Table(
        "model", "mistake", "check", "fast_mode", "times slower", "evaluations", "entries wrong", "fast_mode says"
    )
    for row in timings:
        found, wrong = row.wrong
        rows.add_row(
            f"{row.case}, {row.coordinates:,}",
            row.mistake,
            f"{row.median_seconds[OURS]:.1f} s",
            f"{row.median_seconds[FAST]:.1f} s",
            f"{row.times_slower:.1f}",
            str(row.evaluations),
            f"{found:,} of {wrong:,} in {', '.join(row.named) or 'none'}",
            "wrong" if row.accused[FAST] else "passes",
        )
    return rows


def counts_table(counts: Iterable[Count]) -> Table:
    """One row a model and size of error."""
    rows = Table(
        "model", "error in one tensor", "checks", "missed or accused", "undecided rows", "longest", "evaluations"
    )
    for row in counts:
        rows.add_row(
            row.case,
            f"{row.size:.0e}" if row.size else "none",
            str(row.checks),
            str(len(row.wrong)),
            str(row.undecided),
            f"{row.seconds:.1f} s",
            f"at most {row.evaluations}",
        )
    return rows


def main() -> None:
    """Reads the command line, runs the contest, prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="turns on each model and mistake (default: 2)")
    parser.add_argument("--seeds", type=int, default=10, help="of errors of 1e-4; twice as many without (default: 10)")
    parser.add_argument("--quick", action="store_true", help="a small model, one seed; writes nothing without --json")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name}, if not quick)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*SHAPES, *GRADIENTS],
        help=f"checks of GPT-2's shapes alone, of {', '.join(SHAPES)}; right, or with one entry wrong: "
        f"{', '.join(map(repr, GRADIENTS))} (default: both)",
    )
    parser.add_argument("--memory-of", metavar="CASE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(own_peak_memory(arguments.memory_of))
        return

    console = Console(width=WIDTH)
    path = arguments.json or (None if arguments.quick else RESULTS)
    if arguments.only:
        check_shapes(console, asked_of(arguments.only), path)
        return

    keys, repeats, seeds = (
        (list(SMALL), 1, 1) if arguments.quick else (arguments.cases, arguments.repeats, arguments.seeds)
    )
    check(built("small-resnet"))
    timings = [timing(built(key), mistake, repeats) for key in keys for mistake in (CORRECT, *MISTAKES)]
    console.print(table(timings))
    counts = [count for key in keys for count in (sensitivity(key, range(seeds)), false_alarms(key, range(2 * seeds)))]
    console.print(counts_table(counts))
    memory = {key: {"theta_mib": built(key).coordinates * 8 / 2**20, "peak_mib": peak_memory(key)} for key in keys}
    console.print(memory)
    if path:
        facts: dict[str, Any] = {
            "environment": environment(),
            "rules": (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2],
        }
        facts |= {
            "timings": [asdict(row) for row in timings],
            "counts": [asdict(row) for row in counts],
            "memory": memory,
        }
        older = json.loads(path.read_text()).get("shapes", []) if path.exists() else []
        write(path, facts | {"shapes": older})
    if arguments.quick:
        check_shapes(console, [(shape, GRADIENTS[-1]) for shape in TINY], path, of_this_process)
    else:
        check_shapes(console, asked_of(list(SHAPES)), path)


def asked_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """The shapes and gradients that are asked for: all of either of which none is named."""
    shapes = [name for name in names if name not in GRADIENTS] or list(SHAPES)
    gradients = [name for name in names if name in GRADIENTS] or list(GRADIENTS)
    return [(shape, each) for shape in shapes for each in gradients]


if __name__ == "__main__":
    main()
