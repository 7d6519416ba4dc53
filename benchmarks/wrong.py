"""The cost of a check of a wrong gradient beside that of a right one: one model, its mistake off and on, in one run.

    python benchmarks/wrong.py              # writes benchmarks/results/wrong.json, 6 minutes
    python benchmarks/wrong.py --quick      # two small models, one turn; writes nothing without --json

The mistake is in the backward at the output of one inner module: it makes the gradient 5 % too large, or loses a column
of it, so that everything upstream is wrong, the usual state of a model with one bug. Off, the same Function with a
right backward is there. Both checks take turns on one model, on one thread, and their CPU seconds are compared. Plain
evaluations of J are calls of the loss function; all others are taken from a record of J.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import large
import speed
from culprits import Changed
from environment import environment
from torch_gradcheck import Report, check_module

RESULTS = Path(__file__).parent / "results" / "wrong.json"

WIDTH = 150
"""Of the printed table."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that keep torch and numpy to one thread, if set before they are loaded."""

SHORT = 0.05
"""A right check of fewer CPU seconds is short: a wrong one is held to `ENOUGH` seconds then, and to no ratio."""

ENOUGH = 0.15
"""CPU seconds in which a wrong model is told where a right one takes less than `SHORT`."""

TURN = 0.5
"""CPU seconds that the turns of a short check fill; a long one has one turn after the first, which is not counted."""


@dataclass(frozen=True)
class Case:
    """A correct model, its loss and batch, and the module at whose output the mistake is.

    Attributes:
        place: the qualified name of that module.
        options: of `check_module`.
        noisy: J is noisy, or rows of its right check are undecided.
    """

    name: str
    model: nn.Module
    loss_fn: Callable[..., Tensor]
    batch: Any
    place: str
    options: Mapping[str, Any] = field(default_factory=dict)
    noisy: bool = False


@dataclass(frozen=True)
class Cost:
    """Of one kind of check, right or wrong.

    Attributes:
        seconds: CPU seconds of one thread, the median of the turns.
        plain: evaluations of J itself, by calls of the loss function.
        recorded: evaluations of a record of J.
    """

    seconds: float
    plain: int
    recorded: int


@dataclass(frozen=True)
class Comparison:
    """What the two checks of a case cost, and what the wrong one said.

    Attributes:
        parameters: the size of θ.
        wrong: mistake to the cost of the check with it.
        ratio: mistake to CPU seconds, wrong by right, turn against turn.
        names: mistake to how many parameters are called wrong.
        culprit: mistake to the module that is named.
        unproven: how many rows of the right check are neither right nor known to be flat.
    """

    case: str
    parameters: int
    place: str
    noisy: bool
    right: Cost
    wrong: dict[str, Cost]
    ratio: dict[str, float]
    names: dict[str, int]
    culprit: dict[str, str | None]
    unproven: int


# The mistake ------------------------------------------------------------------------------------------------------


def one_column_lost(gradient: Tensor) -> Tensor:
    """The gradient without its first column."""
    kept = gradient.clone()
    kept[..., 0] = 0
    return kept


Change = Callable[[Tensor], Tensor]

MISTAKES: dict[str, Change] = {"5 % too large": lambda gradient: 1.05 * gradient, "column lost": one_column_lost}


@contextmanager
def changed(module: nn.Module, change: Change) -> Iterator[None]:
    """The module's first output passes through a Function with that backward, for the time of the block."""
    apply: Callable[..., Tensor] = Changed.apply

    def through(_: nn.Module, __: Any, output: Any) -> Any:
        return (apply(output[0], change), *output[1:]) if isinstance(output, tuple) else apply(output, change)

    hook = module.register_forward_hook(through)
    try:
        yield
    finally:
        hook.remove()


# The models -------------------------------------------------------------------------------------------------------


def its_loss(output: Any) -> Tensor:
    """The loss that models of transformers compute themselves."""
    loss: Tensor = output.loss
    return loss


def drawn(model: nn.Module) -> nn.Module:
    """Weights ten times larger than at initialisation, so that no gradient is tiny."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


def configured(name: str, **sizes: int) -> Any:
    """A configuration of transformers."""
    import transformers

    return getattr(transformers, f"{name}Config")(**sizes)


def language_model(name: str, place: str, **sizes: int) -> Case:
    """A causal language model of transformers on two texts of eight tokens."""
    import transformers

    config = configured(name, **sizes)
    head = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    tokens = torch.randint(1, config.vocab_size, (2, 8))
    model = drawn(getattr(transformers, head)(config))
    return Case(name, model, its_loss, {"input_ids": tokens, "labels": tokens}, place)


def small_llama(**sizes: int) -> Case:
    """Two tiny layers, unless told otherwise."""
    small = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    return language_model("Llama", "model.layers.1.mlp", **{**small, **heads, **sizes})


def larger_llama() -> Case:
    """The same with 24 features."""
    return small_llama(vocab_size=64, hidden_size=24, intermediate_size=64)


def gpt2() -> Case:
    """Two tiny layers."""
    sizes = {"vocab_size": 20, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 16}
    return language_model("GPT2", "transformer.h.1.mlp", bos_token_id=1, eos_token_id=2, **sizes)


def mistral() -> Case:
    """Two tiny layers, with a window."""
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "sliding_window": 4}
    return language_model("Mistral", "model.layers.1.self_attn", num_attention_heads=2, num_key_value_heads=1, **sizes)


def bert() -> Case:
    """A classifier of texts, two tiny layers."""
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = configured("Bert", vocab_size=20, max_position_embeddings=8, **sizes)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = {"input_ids": torch.randint(1, 20, (2, 5)), "attention_mask": mask, "labels": torch.tensor([1, 0])}
    return Case(
        "BERT",
        drawn(transformers.BertForSequenceClassification(config)),
        its_loss,
        batch,
        "bert.encoder.layer.1.output",
    )


def vit() -> Case:
    """A classifier of images of four patches, two tiny layers."""
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = configured("ViT", image_size=4, patch_size=2, num_channels=1, **sizes)
    batch = {"pixel_values": torch.randn(2, 1, 4, 4), "labels": torch.tensor([1, 0])}
    return Case("ViT", drawn(transformers.ViTForImageClassification(config)), its_loss, batch, "vit.layernorm")


def t5() -> Case:
    """An encoder and a decoder of one tiny layer each."""
    import transformers

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = configured("T5", vocab_size=20, **sizes)
    config.decoder_start_token_id = 0
    batch = {"input_ids": torch.randint(1, 20, (2, 5)), "labels": torch.randint(1, 20, (2, 4))}
    return Case("T5", drawn(transformers.T5ForConditionalGeneration(config)), its_loss, batch, "encoder.block.0")


def of_speed(key: str, place: str) -> Case:
    """A model of `speed.py`."""
    case = speed.built(key)
    return Case(case.name, case.model, F.cross_entropy, (case.inputs, case.targets), place)


def classifier(name: str, model: nn.Module, inputs: Any, place: str, classes: int = 3, **more: Any) -> Case:
    """A classifier under the cross-entropy."""
    rows = len(inputs[0] if isinstance(inputs, tuple) else inputs)
    return Case(name, model, F.cross_entropy, (inputs, torch.arange(rows) % classes), place, **more)


def conv_with_batch_norm() -> Case:
    """Three convolutions with batch normalisation, 7,794 parameters."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 20), (20, 22)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(88, 3))
    return classifier("conv + BatchNorm", model, torch.randn(4, 3, 8, 8), "6", options={"mode": "train"})


class UNet(nn.Module):
    """Down by a strided convolution, up by a transposed one, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(6, 12, 3, 2, 1), nn.GroupNorm(3, 12), nn.SiLU())
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.out = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """An image of the same size."""
        fine = self.inlet(x)
        image: Tensor = self.out(torch.cat([fine, self.up(self.down(fine))], 1))
        return image


def unet() -> Case:
    """An autoencoder of images."""
    x = torch.randn(2, 1, 8, 8)
    return Case("U-Net", UNet(), F.mse_loss, (x, x.clone()), "up")


class Recurrent(nn.Module):
    """A GRU on embedded tokens, and a classifier of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.rnn = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of shape (batch, 3)."""
        scores: Tensor = self.head(self.rnn(self.embedding(tokens))[0][:, -1])
        return scores


def gru() -> Case:
    """A GRU on tokens; the mistake is at its output."""
    return classifier("GRU", Recurrent(), torch.randint(0, 12, (6, 5)), "rnn")


class CellLoop(nn.Module):
    """An LSTM cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, 3)."""
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        scores: Tensor = self.head(state[0])
        return scores


def cell_loop() -> Case:
    """Twelve steps of a cell."""
    return classifier("LSTM cell, 12 steps", CellLoop(), torch.randn(4, 12, 4), "cell")


class OdeSolver(nn.Module):
    """A vector field integrated by the classical method of Runge and Kutta; the field runs four times a step."""

    def __init__(self, steps: int = 12) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
        self.head, self.steps = nn.Linear(4, 3), steps

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the state at time 1."""
        h = 1 / self.steps
        for _ in range(self.steps):
            k1 = self.field(x)
            k2 = self.field(x + h / 2 * k1)
            k3 = self.field(x + h / 2 * k2)
            k4 = self.field(x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        scores: Tensor = self.head(x)
        return scores


def ode() -> Case:
    """48 calls of one field."""
    return classifier("ODE solver, 48 calls", OdeSolver(), torch.randn(6, 4), "field")


class StopsEarly(OdeSolver):
    """Steps until the state hardly moves; the branch reads values, which no record allows."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the last state."""
        for _ in range(2 * self.steps):
            dx = self.field(x) / self.steps
            x = x + dx
            if float(dx.detach().abs().max()) < 1e-3:
                break
        scores: Tensor = self.head(x)
        return scores


def data_dependent() -> Case:
    """Numbers that J reads decide when it stops."""
    return classifier("solver with .item(), 24 calls", StopsEarly(), torch.randn(6, 4), "field")


class Gated(nn.Module):
    """Depthwise and pointwise convolutions on sequences, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(10, 10, 3, padding=1, groups=10)
        self.pointwise, self.head = nn.Conv1d(10, 20, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, 3)."""
        scores: Tensor = self.head(F.glu(self.pointwise(self.depthwise(x)), 1).amax(2))
        return scores


def gated_convolutions() -> Case:
    """Convolutions in one dimension, and a maximum."""
    return classifier("depthwise + GLU + max", Gated(), torch.randn(4, 10, 9), "pointwise")


class CrossAttention(nn.Module):
    """Queries that are learned attend to the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 12))
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, 3)."""
        found, _ = self.attention(self.queries.expand(len(x), -1, -1), x, x)
        scores: Tensor = self.head(self.norm(found).mean(1))
        return scores


def cross_attention() -> Case:
    """Attention with a bias for keys, whose gradient is 0."""
    return classifier("cross-attention", CrossAttention(), torch.randn(4, 6, 12), "attention")


def small_convolution() -> Case:
    """A few parameters: a check of milliseconds."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    return classifier("small convolution", model, torch.randn(5, 1, 6, 6), "0")


def two_layers() -> Case:
    """The model of a first example."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return classifier("two layers", model, torch.randn(8, 4), "0")


class InFloat32(torch.autograd.Function):
    """tanh as a kernel computes it that knows float32 only; numpy, so that nobody sees the cast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """tanh(x) to seven digits."""
        y = torch.from_numpy(np.tanh(x.numpy().astype("float32")).astype("float64"))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """grad · (1 − tanh²)."""
        (y,) = ctx.saved_tensors
        slope: Tensor = grad * (1 - y * y)
        return slope


class Kernel(nn.Module):
    """A layer through a kernel in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """tanh."""
        y: Tensor = InFloat32.apply(x)  # type: ignore[no-untyped-call]
        return y


def float32_kernel(tolerance: float | None = None) -> Case:
    """A part of J is a staircase."""
    model = nn.Sequential(nn.Linear(5, 8), Kernel(), nn.Linear(8, 3))
    options = {} if tolerance is None else {"tolerance": tolerance}
    name = "float32 kernel inside" + (f", tolerance {tolerance:g}" if tolerance else "")
    return classifier(name, model, torch.randn(8, 5), "0", options=options, noisy=True)


def all_in_float32() -> Case:
    """The check itself in float32."""
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    options = {"dtype": torch.float32, "tolerance": 1e-3}
    return classifier("MLP in float32", model, torch.randn(8, 6), "2", options=options, noisy=True)


def huge_loss() -> Case:
    """A loss of 1e8."""
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))

    def loss_fn(y: Tensor, t: Tensor) -> Tensor:
        return 1e8 + F.cross_entropy(y, t)

    return Case("loss + 1e8", model, loss_fn, (torch.randn(8, 6), torch.arange(8) % 3), "2", noisy=True)


def scaled_loss() -> Case:
    """A loss times 1e8."""
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))

    def loss_fn(y: Tensor, t: Tensor) -> Tensor:
        return 1e8 * F.cross_entropy(y, t)

    return Case("loss · 1e8", model, loss_fn, (torch.randn(8, 6), torch.arange(8) % 3), "2", noisy=True)


def of_large(key: str, place: str) -> Case:
    """A model of `large.py`, too large for differences at every coordinate."""
    case = large.built(key)
    options = {"method": "projected"}
    return Case(case.name, case.model, case.loss_fn, (case.inputs, case.targets), place, options)


CASES: dict[str, Callable[[], Case]] = {
    "llama": small_llama,
    "larger-llama": larger_llama,
    "gpt2": gpt2,
    "mistral": mistral,
    "bert": bert,
    "vit": vit,
    "t5": t5,
    "conv": conv_with_batch_norm,
    "unet": unet,
    "lenet": lambda: of_speed("lenet", "3"),
    "mlp": lambda: of_speed("mlp", "2"),
    "transformer": lambda: of_speed("transformer", "encoder.layers.1.linear1"),
    "lstm": lambda: of_speed("lstm", "lstm"),
    "custom": lambda: of_speed("custom", "1"),
    "gru": gru,
    "cell": cell_loop,
    "ode": ode,
    "item": data_dependent,
    "glu": gated_convolutions,
    "attention": cross_attention,
    "small": lambda: of_speed("small", "2"),
    "small-conv": small_convolution,
    "two-layers": two_layers,
    "kernel": float32_kernel,
    "kernel-1e-3": lambda: float32_kernel(1e-3),
    "float32": all_in_float32,
    "plus-1e8": huge_loss,
    "times-1e8": scaled_loss,
    "resnet": lambda: of_large("resnet", "layer3.0.conv1"),
    "gpt": lambda: of_large("gpt", "transformer.h.5.mlp"),
}
QUICK = ("two-layers", "kernel-1e-3")


def built(key: str) -> Case:
    """The case, the same one each time."""
    torch.manual_seed(0)
    return CASES[key]()


# The run ----------------------------------------------------------------------------------------------------------


def checked(case: Case, change: Change) -> tuple[Report, float, int]:
    """The report of one check, its CPU seconds, and how often the loss function was called."""
    calls = 0

    def loss_fn(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return case.loss_fn(*args)

    with changed(case.model.get_submodule(case.place), change):
        started = time.process_time()
        report = check_module(case.model, loss_fn, case.batch, progress=False, **case.options)
        return report, time.process_time() - started, calls


def compared(key: str, turns: int | None) -> Comparison:
    """Both checks of a case in turns, after one turn that is not counted; None: as many turns as fill `TURN`."""
    case = built(key)
    changes = {"": lambda gradient: gradient.clone(), **MISTAKES}
    first = {name: checked(case, change) for name, change in changes.items()}
    if turns is None:
        turns = min(9, 1 + int(TURN / max(first[""][1], 1e-3)))
    seconds: dict[str, list[float]] = {name: [] for name in changes}
    for _ in range(turns):
        for name, change in changes.items():
            seconds[name].append(checked(case, change)[1])
    costs = {name: _cost(seconds[name], *found) for name, found in first.items()}
    reports = {name: found[0] for name, found in first.items()}
    return Comparison(
        case=case.name,
        parameters=sum(parameter.numel() for parameter in case.model.parameters()),
        place=case.place,
        noisy=case.noisy,
        right=costs.pop(""),
        wrong=costs,
        ratio={name: median(a / b for a, b in zip(seconds[name], seconds[""], strict=True)) for name in costs},
        names={name: len(reports[name].mismatches) for name in costs},
        culprit={name: reports[name].culprit for name in costs},
        unproven=sum(row.status.is_named_as_unproven for row in reports[""]),
    )


def _cost(seconds: list[float], report: Report, _: float, calls: int) -> Cost:
    return Cost(median(seconds), calls, max(report.evaluations - calls, 0))


def table(comparisons: Iterable[Comparison]) -> Table:
    """A row a case."""
    rows = Table(
        *("model", "parameters", "right", "J, record", "mistake", "wrong", "J, record", "ratio", "named", "culprit")
    )
    for row in comparisons:
        for number, (mistake, cost) in enumerate(row.wrong.items()):
            first = number == 0
            rows.add_row(
                row.case if first else "",
                f"{row.parameters:,}" if first else "",
                f"{row.right.seconds:.3f} s" if first else "",
                f"{row.right.plain:,} + {row.right.recorded:,}" if first else "",
                mistake,
                f"{cost.seconds:.3f} s",
                f"{cost.plain:,} + {cost.recorded:,}",
                f"{row.ratio[mistake]:.2f}",
                f"{row.names[mistake]}" + (f" ({row.unproven} open)" if row.unproven else ""),
                row.culprit[mistake] or "-",
                end_section=number == len(row.wrong) - 1,
            )
    return rows


def summary(comparisons: Iterable[Comparison]) -> dict[str, float]:
    """The figures to be held: median and largest ratio where a right check is not short, longest wrong check where."""
    pairs = [
        (row.right.seconds, row.ratio[name], cost.seconds) for row in comparisons for name, cost in row.wrong.items()
    ]
    ratios = [ratio for right, ratio, _ in pairs if right >= SHORT]
    seconds = [wrong for right, _, wrong in pairs if right < SHORT]
    return {
        "median_ratio": median(ratios) if ratios else float("nan"),
        "largest_ratio": max(ratios, default=float("nan")),
        "longest_wrong_check_where_a_right_one_is_short": max(seconds, default=float("nan")),
    }


def main() -> None:
    """Reads the command line, measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two small models, one turn; writes nothing without --json"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--turns", type=int, help="of every model (default: as many as fill half a second)")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name}, if not quick)")
    arguments = parser.parse_args()

    if any(os.environ.get(name) != "1" for name in THREADS):  # numpy's own threads wait awake, which counts as work
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict.fromkeys(THREADS, "1"))
    console = Console(width=WIDTH)
    comparisons = []
    for key in QUICK if arguments.quick else arguments.cases:
        comparisons.append(compared(key, 1 if arguments.quick else arguments.turns))
        console.print(table(comparisons[-1:]))
    found = summary(comparisons)
    console.print(table(comparisons), found)
    path = arguments.json or (None if arguments.quick else RESULTS)
    if path:
        path.parent.mkdir(exist_ok=True)
        facts = {"environment": environment(), "summary": found, "comparisons": [asdict(row) for row in comparisons]}
        path.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
