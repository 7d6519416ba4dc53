"""How long an exact check of models that decide by values takes, beside one of a dense model of their size.

    python benchmarks/decisions.py                   # writes benchmarks/results/decisions.json, 2 minutes
    python benchmarks/decisions.py --quick           # the two smallest models once, writes nothing
    python benchmarks/decisions.py --before FILE     # writes the figures of another commit beside its own

Mixtures of experts of transformers at random weights, with each of its ways to run experts; a distribution whose
arguments are validated; a fixed point that is iterated until it stands, and an ODE whose steps follow its error. CPU
seconds of one thread, in turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from environment import environment
from torch_gradcheck import check_module

transformers: Any = import_module("transformers")  # its configurations take more keywords than they declare

RESULTS = Path(__file__).parent / "results" / "decisions.json"

SIZE: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of every language model."""

VISITED: dict[str, Any] = {**SIZE, "num_experts_per_tok": 2}

DENSE = "llama, dense"


class Case(NamedTuple):
    """A model, its loss and its batch."""

    model: nn.Module
    loss: Callable[..., Tensor]
    batch: tuple[Any, ...]


@dataclass(frozen=True)
class Timing:
    """What the check of a model takes.

    Attributes:
        case: the name of the model.
        coordinates: the size of θ.
        seconds: CPU seconds, one a turn; none where the model was refused.
        median_seconds: the median of them.
        times_dense: the median, over the turns, of the seconds divided by those of the dense model.
        evaluations: the number of evaluations of J.
        outcome: how many parameters have which status, and what stood in the way of a record or of the check.
    """

    case: str
    coordinates: int
    seconds: list[float]
    median_seconds: float | None
    times_dense: float | None
    evaluations: int | None
    outcome: str


def language_model(config: Any, **options: Any) -> Case:
    """A causal language model on two short texts."""
    ids = 1 + torch.arange(12).view(2, 6) % 12
    model = transformers.AutoModelForCausalLM.from_config(config, **options)
    return Case(model, loss_of, ({"input_ids": ids, "labels": ids, "use_cache": False},))


def loss_of(outputs: Any) -> Tensor:
    """The loss that a model of transformers computes itself."""
    loss: Tensor = outputs.loss
    return loss


def olmoe(**options: Any) -> Case:
    """Experts run in one of three ways; `grouped_mm` is the default."""
    return language_model(transformers.OlmoeConfig(**VISITED, num_experts=4), **options)


def deepseek() -> Case:
    """Experts in groups, of which some are left out before single ones are."""
    shape = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    experts = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 8}
    config = transformers.DeepseekV3Config(**VISITED, **shape, **experts, first_k_dense_replace=1)
    return language_model(config, experts_implementation="eager")


def jamba() -> Case:
    """A layer of Mamba, and one of attention with experts."""
    layers = {"expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
    mamba = {"mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 1, "mamba_dt_rank": 4}
    config = transformers.JambaConfig(**VISITED, **layers, **mamba, num_experts=4, pad_token_id=0)
    return language_model(config, experts_implementation="eager")


def switch() -> Case:
    """An encoder and a decoder; each token visits one expert, unless that is full."""
    config = transformers.SwitchTransformersConfig(
        vocab_size=13, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=2, num_heads=2, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    ids = 1 + torch.arange(12).view(2, 6) % 12
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    return Case(model, loss_of, ({"input_ids": ids, "labels": ids},))


def patchtst() -> Case:
    """A forecast as a distribution, which validates its parameters."""
    config = transformers.PatchTSTConfig(
        num_input_channels=2, context_length=16, patch_length=4, patch_stride=4, d_model=8, num_attention_heads=2,
        num_hidden_layers=2, ffn_dim=8, prediction_length=4, loss="nll", distribution_output="normal",
    )  # fmt: skip
    batch = {"past_values": torch.randn(2, 16, 2), "future_values": torch.randn(2, 4, 2)}
    return Case(transformers.PatchTSTForPrediction(config), loss_of, (batch,))


class FixedPoint(nn.Module):
    """A deep equilibrium model: z = tanh(W·z + U·x), iterated as long as z moves."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.leave = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.again.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 4)."""
        given = self.enter(x)
        z, residual = torch.zeros_like(given), given.new_ones(())
        while residual > 1e-6:
            previous, z = z, torch.tanh(self.again(z) + given)
            residual = (z - previous).norm()
        return self.leave(z)  # type: ignore[no-any-return]


class Ode(nn.Module):
    """A neural ODE by Heun's method, with steps that follow the difference from Euler's."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 8))

    def forward(self, y: Tensor) -> Tensor:
        """Shape (batch, 8)."""
        t, h = y.new_zeros(()), y.new_tensor(0.1)
        while t < 1:
            h = torch.minimum(h, 1 - t)
            before = self.slope(y)
            after = self.slope(y + h * before)
            error = (h * (after - before)).abs().max()
            if error <= 0.01:
                t, y = t + h, y + h * (before + after) / 2
            h = 0.9 * h * (0.01 / error).sqrt().clamp(0.3, 3)
        return y


def regression(model: nn.Module, outputs: int) -> Case:
    """A model of 8 inputs on random pairs."""
    return Case(model, nn.MSELoss(), (torch.randn(6, 8), torch.randn(6, outputs)))


CASES: dict[str, Callable[[], Case]] = {
    DENSE: lambda: language_model(transformers.LlamaConfig(**{**SIZE, "intermediate_size": 44})),
    "fixed point": lambda: regression(FixedPoint(), 4),
    "adaptive ODE": lambda: regression(Ode(), 8),
    "PatchTST, likelihood": patchtst,
    "olmoe, grouped_mm": olmoe,
    "olmoe, batched_mm": lambda: olmoe(experts_implementation="batched_mm"),
    "olmoe, eager": lambda: olmoe(experts_implementation="eager"),
    "mixtral, eager": lambda: language_model(
        transformers.MixtralConfig(**VISITED, num_local_experts=4), experts_implementation="eager"
    ),
    "granitemoe, eager": lambda: language_model(
        transformers.GraniteMoeConfig(**VISITED, num_local_experts=4), experts_implementation="eager"
    ),
    "deepseek_v3, eager": deepseek,
    "jamba, eager": jamba,
    "switch_transformers": switch,
}


def timed(name: str) -> tuple[float | None, int | None, str]:
    """CPU seconds and evaluations of one check, None where the model is refused, and the outcome."""
    torch.manual_seed(0)
    case = CASES[name]()
    started = process_time()
    try:
        report = check_module(case.model, case.loss, case.batch, method="exact", progress=False)
    except Exception as error:  # what another commit answers is a figure, too
        return None, None, f"{type(error).__name__}: {str(error)[:200]}"
    seconds = process_time() - started
    statuses = [str(row.status) for row in report]
    counted = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    refusals = [note for note in report.notes if "one coordinate at a time" in note]
    return seconds, report.evaluations, "; ".join([", ".join(counted), *refusals])


def timings(names: Iterable[str], repeats: int) -> list[Timing]:
    """Checks the models in turns, after one check of the dense one that is not counted."""
    names = list(dict.fromkeys([DENSE, *names]))
    timed(DENSE)
    turns = [{name: timed(name) for name in names} for _ in range(repeats)]
    return [timing(name, turns) for name in names]


def timing(name: str, turns: list[dict[str, tuple[float | None, int | None, str]]]) -> Timing:
    """The figures of one model."""
    pairs = [(turn[name][0], turn[DENSE][0]) for turn in turns]
    ratios = [own / dense for own, dense in pairs if own is not None and dense is not None]
    found = [own for own, _ in pairs if own is not None]
    _, evaluations, outcome = turns[-1][name]
    coordinates = sum(parameter.numel() for parameter in CASES[name]().model.parameters())
    return Timing(
        case=name,
        coordinates=coordinates,
        seconds=found,
        median_seconds=median(found) if found else None,
        times_dense=median(ratios) if ratios else None,
        evaluations=evaluations,
        outcome=outcome,
    )


def table(rows: Iterable[Timing], before: dict[str, Any]) -> Table:
    """One row a model."""
    shown = Table("model", "coordinates", "CPU seconds", "times dense", "evaluations", "before")
    earlier = {row["case"]: row for row in before.get("timings", [])}
    for row in rows:
        old = earlier.get(row.case, {})
        shown.add_row(
            row.case,
            f"{row.coordinates:,}",
            number(row.median_seconds),
            number(row.times_dense),
            f"{row.evaluations or 0:,}",
            number(old.get("median_seconds")) if old else "",
        )
    return shown


def number(value: float | None) -> str:
    """A figure for the table."""
    return "refused" if value is None else f"{value:.1f}"


def main() -> None:
    """Reads the command line, times, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns on each model (default: 3)")
    parser.add_argument("--quick", action="store_true", help="the smallest models once; writes nothing")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--before", type=Path, help="figures of another commit, to be written along")
    parser.add_argument("--json", type=Path, default=RESULTS, help=f"where to write (default: {RESULTS.name})")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    before = json.loads(arguments.before.read_text()) if arguments.before else {}
    names = [DENSE, "fixed point", "adaptive ODE"] if arguments.quick else arguments.cases
    rows = timings(names, 1 if arguments.quick else arguments.repeats)
    Console(width=120).print(table(rows, before))
    if not arguments.quick:
        figures: dict[str, Any] = {
            "environment": environment() | {"transformers": transformers.__version__},
            "timings": [asdict(row) for row in rows],
        }
        if before:
            figures["before"] = before
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
