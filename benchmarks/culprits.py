"""How often the culprit is right, None or wrong, where a mistake is planted at random in a random model.

    python benchmarks/culprits.py              # writes benchmarks/results/culprits.json, 10 minutes
    python benchmarks/culprits.py --quick      # eight models

A model is a stack of two to four blocks (residual, attention, recurrent, convolutional, gated, shared, a torch encoder
layer), half of its larger tensors frozen. One of its modules is wrapped in a module with a mistake, or the loss
function is, or a parameter gets a hook. The check runs in eval or train mode. The culprit is right if it is the
wrapper, `loss_fn` or the parameter; models in which no checked gradient is spoiled do not count. The share of the
check's time that goes into finding the culprit and the kind of mistake is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from environment import environment
from torch_gradcheck import check_module
from torch_gradcheck.diagnosis.findings import findings_of
from torch_gradcheck.pipeline import backward as pipeline

RESULTS = Path(__file__).parent / "results" / "culprits.json"
WIDTH = 4


class Changed(torch.autograd.Function):
    """The identity; `change` is done to the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Remembers what to do."""
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Does it."""
        return ctx.change(grad), None


def half_detached(x: Tensor) -> Tensor:
    """Keeps the value, loses half of the gradient."""
    return 0.5 * x + 0.5 * x.detach()


def hooked(x: Tensor) -> Tensor:
    """A hook on a tensor of the forward."""
    y = x * 1.0
    if y.requires_grad:
        y.register_hook(lambda grad: 1.5 * grad)
    return y


def under_no_grad(x: Tensor) -> Tensor:
    """A branch without a graph."""
    with torch.no_grad():
        branch = torch.sin(x)
    return x + branch


def backward(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A custom autograd.Function with a wrong backward."""
    apply: Callable[..., Tensor] = Changed.apply
    return lambda x: apply(x, change)


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "half detached": half_detached,
    "hook on a tensor": hooked,
    "branch under no_grad": under_no_grad,
    "backward three times too large": backward(lambda grad: 3 * grad),
    "backward 0.1 % too large": backward(lambda grad: 1.001 * grad),
    "backward of the wrong sign": backward(torch.neg),
    "backward loses every other column": backward(lambda grad: grad * (torch.arange(grad.shape[-1]) % 2)),
    "backward reversed": backward(lambda grad: grad.flip(-1)),
    "backward clamped": backward(lambda grad: grad.clamp(-1e-3, 1e-3)),
}


class Wrong(nn.Module):
    """A module, and a mistake after it."""

    def __init__(self, module: nn.Module, mistake: str) -> None:
        super().__init__()
        self.module, self.mistake = module, mistake

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The mistake is made on the first output."""
        found = self.module(*args, **kwargs)
        if isinstance(found, tuple):
            return (MISTAKES[self.mistake](found[0]), *found[1:])
        return MISTAKES[self.mistake](found)


class Residual(nn.Module):
    """x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        mixed: Tensor = x + self.mlp(self.norm(x))
        return mixed


class Attention(nn.Module):
    """norm(x + attention(x, x, x))."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        normal: Tensor = self.norm(x + self.attention(x, x, x)[0])
        return normal


class Recurrent(nn.Module):
    """An LSTM or a GRU, without its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = random.choice([nn.LSTM, nn.GRU])(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all steps."""
        states: Tensor = self.rnn(x)[0]
        return states


class Convolutional(nn.Module):
    """relu(batch_norm(conv(x))), the ReLU in place or not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH)
        self.act = nn.ReLU(inplace=random.random() < 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Over the second axis."""
        activated: Tensor = self.act(self.norm(self.conv(x.mT)))
        return activated.mT


class Shared(nn.Module):
    """One layer and one activation, each used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(WIDTH, WIDTH), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Two passes."""
        twice: Tensor = self.act(self.layer(self.act(self.layer(x))))
        return twice


class Gated(nn.Module):
    """x + glu(linear(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(WIDTH, 2 * WIDTH), nn.GLU()

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        mixed: Tensor = x + self.gate(self.layer(x))
        return mixed


BLOCKS: tuple[Callable[[], nn.Module], ...] = (
    Residual,
    Attention,
    Recurrent,
    Convolutional,
    Shared,
    Gated,
    lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True),
)

FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Read their children's weights without calling them: nothing is planted there."""


@dataclass(frozen=True)
class Trial:
    """One model: what was planted where, and what was said.

    Attributes:
        outcome: `right`, `none`, `wrong`, or `unspoiled` where every checked gradient is right all the same.
        share: of the check's time, for culprit and kinds.
    """

    seed: int
    place: str
    mistake: str
    planted: str
    culprit: str | None
    outcome: str
    share: float


def random_model() -> nn.Sequential:
    """Two to four blocks between two linear layers."""
    blocks = [random.choice(BLOCKS)() for _ in range(random.randint(2, 4))]
    return nn.Sequential(nn.Linear(3, WIDTH), *blocks, nn.Linear(WIDTH, 2))


def candidates(model: nn.Module) -> list[str]:
    """The modules that a mistake may be planted behind."""
    fused = [name for name, module in model.named_modules() if isinstance(module, FUSED)]
    return [name for name, _ in model.named_modules() if name and not any(name.startswith(f"{one}.") for one in fused)]


def in_a_module(model: nn.Module, mistake: str) -> str:
    """Wraps one of the modules, and gives its name."""
    name = random.choice(candidates(model))
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, Wrong(model.get_submodule(name), mistake))
    return name


def in_a_hook(model: nn.Module) -> str:
    """Puts a hook on a parameter, and gives its name."""
    name, parameter = random.choice(list(model.named_parameters()))
    change = random.choice([lambda g: 2 * g, lambda g: 0 * g, lambda g: g.clamp(-1e-3, 1e-3), lambda g: -g])
    parameter.requires_grad_(True).register_hook(change)
    return name


def trial(seed: int) -> Trial:
    """Plants a mistake and asks for the culprit."""
    random.seed(seed)
    torch.manual_seed(seed)
    model, mistake = random_model(), random.choice(list(MISTAKES))
    place = random.choices(["module", "loss", "hook"], weights=[6, 1, 1])[0]
    planted = in_a_module(model, mistake) if place == "module" else "loss_fn"
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.numel() <= 20 or random.random() < 0.5)
    if place == "hook":
        planted, mistake = in_a_hook(model), "hook on a parameter"
    plain = random.choice([nn.MSELoss(), nn.SmoothL1Loss(), nn.HuberLoss(delta=0.5)])
    loss_fn = (lambda y, t: plain(MISTAKES[mistake](y), t)) if place == "loss" else plain
    batch = torch.randn(3, 4, 3), torch.randn(3, 4, 2)
    mode = random.choice(["eval", "train"])
    report, share = timed(lambda: check_module(model, loss_fn, batch, mode=mode))  # type: ignore[arg-type]
    outcome = "right" if report.culprit == planted else "none" if report.culprit is None else "wrong"
    outcome = "unspoiled" if not report.mismatches else outcome
    return Trial(seed, place, mistake, planted, report.culprit, outcome, round(share, 3))


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The report, and the share of the time that was spent on findings."""
    spent = [0.0]

    def measured(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return findings_of(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - started)

    with patch.object(pipeline, "findings_of", measured):
        started = time.perf_counter()
        report = run()
        return report, sum(spent) / (time.perf_counter() - started)


def figures(trials: list[Trial]) -> dict[str, Any]:
    """Everything for the JSON file."""
    spoiled = [one for one in trials if one.outcome != "unspoiled"]
    return {
        "environment": environment(),
        "rules": (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2],
        "outcomes": dict(Counter(one.outcome for one in trials)),
        "median_share_of_time": statistics.median(one.share for one in spoiled),
        "trials": [asdict(one) for one in trials],
    }


def main() -> None:
    """Reads the command line, runs the trials, prints the counts and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200, help="how many models (default: 200)")
    parser.add_argument("--quick", action="store_true", help="eight models; writes nothing without --json")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name})")
    arguments = parser.parse_args()

    found = figures([trial(seed) for seed in range(8 if arguments.quick else arguments.models)])
    print(found["outcomes"], f"median share of the check's time {found['median_share_of_time']:.0%}")
    path = arguments.json or (None if arguments.quick else RESULTS)
    if path:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
