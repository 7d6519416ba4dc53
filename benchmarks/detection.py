"""False alarms and misses by size of the planted error, of four ways to check a gradient, on the same cases in one run.

    python benchmarks/detection.py              # writes benchmarks/results/detection.json, 4 minutes
    python benchmarks/detection.py --quick      # three small models, one seed

An error of size s is autograd's gradient times 1 + s, in the whole of one tensor or in one of its larger entries (at
least half the largest one). A contestant accuses when it says that something is wrong:

    torch_gradcheck    a mismatch in the report
    gradcheck slow     torch.autograd.gradcheck raises, fast_mode=False, its default tolerances
    gradcheck fast     the same, fast_mode=True
    textbook > 1e-5    the loop at ε = 1e-7, Ng's ratio over the whole θ above 1e-5, "look again"
    textbook > 1e-3    the same ratio above 1e-3, "worry"

Who accuses the correct model of a case as well, finds every error in it, and is given that here. A miss is admitted
when the report does not vouch for the tensor: `undecided` or `flat`; only torch_gradcheck can. Everything runs in
float64. The tolerance of torch_gradcheck, 1e-5 of |analytic| + |numeric|, lets errors below 2e-5 of the gradient pass:
the last two sizes are below it, on purpose.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from environment import environment
from textbook import textbook_gradient
from torch_gradcheck import Status, check_module

RESULTS = Path(__file__).parent / "results" / "detection.json"

WIDTH = 140
"""Of the printed table."""

SIZES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""1 doubles the gradient."""

Place = Literal["whole tensor", "one entry"]
PLACES: tuple[Place, ...] = ("whole tensor", "one entry")

Verdict = Literal["accused", "passed", "admitted"]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A correct model in float64, its loss and its batch."""

    name: str
    model: nn.Module
    loss_fn: Callable[..., Tensor]
    inputs: Tensor
    targets: tuple[Tensor, ...] = ()

    @property
    def mode(self) -> Literal["train", "eval"]:
        """The mode the model is in."""
        return "train" if self.model.training else "eval"

    def J(self) -> Tensor:
        """The loss at the model's own weights."""
        loss: Tensor = self.loss_fn(self.model(self.inputs), *self.targets)
        return loss


@dataclass(frozen=True)
class Plant:
    """An error in autograd's gradient of one parameter; size 0 is none."""

    size: float
    place: Place
    name: str
    entry: int

    def change(self, gradient: Tensor) -> Tensor:
        """The gradient with the error in it."""
        if self.place == "whole tensor":
            return gradient * (1 + self.size)
        flat = gradient.flatten().clone()
        flat[self.entry] *= 1 + self.size
        return flat.view_as(gradient)


@dataclass
class Count:
    """How one contestant did on all cases and seeds with errors of one size in one place.

    Attributes:
        accused: case to how often something was accused; with errors of size 0, false alarms.
        missed: case to how often nothing was.
        admitted: how many of the misses the report does not vouch for.
    """

    contestant: str
    size: float
    place: Place
    trials: int = 0
    accused: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    admitted: int = 0

    def add(self, case: str, verdict: Verdict) -> None:
        """One more trial."""
        self.trials += 1
        where = self.accused if verdict == "accused" else self.missed
        where[case] = where.get(case, 0) + 1
        self.admitted += verdict == "admitted"


# The cases --------------------------------------------------------------------------------------------------------


def squares(y: Tensor, t: Tensor) -> Tensor:
    """The mean squared error."""
    return (y - t).square().mean()


def mlp(activation: type[nn.Module], *units: int) -> nn.Sequential:
    """Linear layers with an activation after each but the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(units):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


class LSTM(nn.Module):
    """An LSTM cell over a few steps, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.readout = nn.LSTMCell(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, time, 2) to (batch, 2)."""
        state: tuple[Tensor, Tensor] | None = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return torch.as_tensor(self.readout(state[0]))


class Attention(nn.Module):
    """Softmax attention; the key's bias has no influence, its gradient is 0 up to rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, time, 4) to the same."""
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 2, dim=-1)
        return torch.as_tensor(weights @ self.value(x))


def conv_with_max_pool() -> nn.Sequential:
    """A small image classifier."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def with_norm(norm: nn.Module) -> nn.Sequential:
    """A hidden layer with a normalisation; the bias before a BatchNorm has no influence."""
    return nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 2))


def zero_relu() -> nn.Sequential:
    """Biases of 0; on an input of 0 every unit sits at its corner."""
    model = mlp(nn.ReLU, 4, 6, 2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def with_a_row_of_zeros(*shape: int) -> Tensor:
    """Random inputs; the first row, as padding, is 0."""
    x = torch.randn(*shape)
    x[0] = 0
    return x


Parts = tuple[nn.Module, Callable[..., Tensor], Tensor, tuple[Tensor, ...]]

CASES: dict[str, Callable[[], Parts]] = {
    "MLP, tanh": lambda: (mlp(nn.Tanh, 4, 6, 5, 2), squares, torch.randn(8, 4), (torch.randn(8, 2),)),
    "MLP, ReLU": lambda: (mlp(nn.ReLU, 4, 8, 6, 3), nn.CrossEntropyLoss(), torch.randn(8, 4), (torch.arange(8) % 3,)),
    "conv with max-pool": lambda: (
        conv_with_max_pool(),
        nn.CrossEntropyLoss(),
        torch.randn(5, 1, 6, 6),
        (torch.arange(5) % 3,),
    ),
    "LSTM cell": lambda: (LSTM(), squares, torch.randn(4, 4, 2), (torch.randn(4, 2),)),
    "attention": lambda: (Attention(), squares, torch.randn(3, 4, 4), (torch.randn(3, 4, 4),)),
    "BatchNorm, train": lambda: (
        with_norm(nn.BatchNorm1d(6)).train(),
        squares,
        torch.randn(8, 4),
        (torch.randn(8, 2),),
    ),
    "LayerNorm": lambda: (with_norm(nn.LayerNorm(6)), squares, torch.randn(8, 4), (torch.randn(8, 2),)),
    "loss summed to 1e4": lambda: (
        mlp(nn.Tanh, 4, 6, 2),
        nn.MSELoss(reduction="sum"),
        torch.randn(200, 4),
        (5 * torch.randn(200, 2),),
    ),
    "loss times 1e-12": lambda: (
        mlp(nn.Tanh, 4, 6, 2),
        lambda y, t: 1e-12 * squares(y, t),
        torch.randn(8, 4),
        (torch.randn(8, 2),),
    ),
    "20 layers": lambda: (mlp(nn.Tanh, *[3] * 21), squares, torch.randn(4, 3), (torch.randn(4, 3),)),
    "ReLU at 0": lambda: (zero_relu(), squares, with_a_row_of_zeros(8, 4), (torch.randn(8, 2),)),
    "weights of 1e-3 and 1e3": lambda: (scaled_layers(), squares, torch.randn(8, 4), (torch.randn(8, 2),)),
}
QUICK = ("MLP, tanh", "attention", "ReLU at 0")


def scaled_layers() -> nn.Sequential:
    """A tanh network whose first two layers undo each other's scale."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for name, factor in (("0.weight", 1e-3), ("0.bias", 1e-3), ("1.weight", 1e3)):
            model.get_parameter(name).mul_(factor)
    return model


def case(name: str, seed: int) -> Case:
    """The case of that name with weights and batch drawn from `seed`."""
    torch.manual_seed(1000 + seed)
    model, loss_fn, inputs, targets = CASES[name]()
    training = name.endswith("train")
    targets = tuple(t.double() if t.is_floating_point() else t for t in targets)
    return Case(name, model.double().train(training), loss_fn, inputs.double(), targets)


def plants(case: Case, seed: int, sizes: Sequence[float]) -> Iterator[Plant]:
    """No error, then each size in each place, in a tensor and an entry of it drawn from `seed`."""
    names, parameters = zip(*case.model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(case.J(), parameters), strict=True))
    largest = max(float(g.abs().max()) for g in gradients.values())
    known = [name for name, g in gradients.items() if float(g.abs().max()) > 1e-9 * largest]
    draw = random.Random(seed)
    yield Plant(0.0, "whole tensor", known[0], 0)
    for size in sizes:
        for place in PLACES:
            name = draw.choice(known)
            size_of_entries = gradients[name].abs().flatten()
            larger = (size_of_entries >= size_of_entries.max() / 2).nonzero().flatten().tolist()
            yield Plant(size, place, name, draw.choice(larger))


# The contestants --------------------------------------------------------------------------------------------------


@contextmanager
def planted(case: Case, plant: Plant) -> Iterator[None]:
    """The error in the gradients of the model's own parameters, for the time of the block."""
    hook = case.model.get_parameter(plant.name).register_hook(plant.change)
    try:
        yield
    finally:
        hook.remove()


def torch_gradcheck(case: Case, plant: Plant) -> Verdict:
    """The check of this package."""
    with planted(case, plant):
        batch = (case.inputs, *case.targets)
        report = check_module(case.model, case.loss_fn, batch, mode=case.mode, progress=False)
    if report.mismatches:
        return "accused"
    vouched = report[plant.name].status is Status.MATCH
    return "passed" if vouched or not plant.size else "admitted"


def autograd_gradcheck(case: Case, plant: Plant, fast_mode: bool) -> Verdict:
    """torch.autograd.gradcheck over all parameters."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in case.model.named_parameters()}

    def J(*values: Tensor) -> Tensor:
        lent = dict(zip(parameters, values, strict=True))
        through = lent[plant.name].view_as(lent[plant.name])
        if through.requires_grad:
            through.register_hook(lambda g: None if g is None else plant.change(g))  # gradcheck tries None, too
        outputs = functional_call(case.model, {**lent, plant.name: through}, case.inputs)
        loss: Tensor = case.loss_fn(outputs, *case.targets)
        return loss

    try:
        torch.autograd.gradcheck(J, tuple(parameters.values()), fast_mode=fast_mode)
    except GradcheckError:
        return "accused"
    return "passed"


class Textbook:
    """The textbook loop; its numeric side does not depend on what is planted, and is computed once."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._approx = textbook_gradient(case.model.parameters(), case.J, eps=1e-7)

    def ratio(self, plant: Plant) -> float:
        """‖approx − grad‖₂ / (‖approx‖₂ + ‖grad‖₂) over the whole θ."""
        with planted(self._case, plant):
            parameters = list(self._case.model.parameters())
            grad = torch.cat([g.flatten() for g in torch.autograd.grad(self._case.J(), parameters)])
        return float((self._approx - grad).norm() / (self._approx.norm() + grad.norm()))


def verdicts(case: Case, book: Textbook, plant: Plant) -> dict[str, Verdict]:
    """What each contestant says of one planted error."""
    ratio = book.ratio(plant)
    return {
        "torch_gradcheck": torch_gradcheck(case, plant),
        "gradcheck slow": autograd_gradcheck(case, plant, fast_mode=False),
        "gradcheck fast": autograd_gradcheck(case, plant, fast_mode=True),
        "textbook > 1e-5": "accused" if ratio > 1e-5 else "passed",
        "textbook > 1e-3": "accused" if ratio > 1e-3 else "passed",
    }


# The run ----------------------------------------------------------------------------------------------------------


def contest(names: Iterable[str], seeds: Sequence[int], sizes: Sequence[float]) -> list[Count]:
    """Every contestant on every case, seed and planted error."""
    counts: dict[tuple[str, float, Place], Count] = {}
    for name in names:
        for seed in seeds:
            subject = case(name, seed)
            book = Textbook(subject)
            for plant in plants(subject, seed, sizes):
                for contestant, verdict in verdicts(subject, book, plant).items():
                    key = (contestant, plant.size, plant.place)
                    counts.setdefault(key, Count(*key)).add(name, verdict)
    return list(counts.values())


def table(counts: Sequence[Count]) -> Table:
    """False alarms in the first row, misses in the others; a contestant a column."""
    contestants = list(dict.fromkeys(count.contestant for count in counts))
    rows: dict[tuple[float, Place], list[Count]] = {}
    for count in counts:
        rows.setdefault((count.size, count.place), []).append(count)
    shown = Table("planted error", "in", "trials", *contestants, box=SIMPLE)
    for (size, place), row in rows.items():
        heading = [f"{size:.0e}" if size < 1 else "factor 2", place] if size else ["none", "(false alarms)"]
        shown.add_row(*heading, str(row[0].trials), *map(figure, row))
    return shown


def figure(count: Count) -> str:
    """False alarms or misses, with how many of the misses were admitted."""
    if not count.size:
        return str(sum(count.accused.values()))
    return str(sum(count.missed.values())) + (f" ({count.admitted} admitted)" if count.admitted else "")


def figures(counts: Sequence[Count], names: Sequence[str], seeds: Sequence[int], seconds: float) -> dict[str, Any]:
    """Everything for the JSON file."""
    return {
        "environment": environment(),
        "rules": (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2],
        "cases": list(names),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "counts": [asdict(count) for count in counts],
    }


def main() -> None:
    """Reads the command line, runs the contest, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="draws of weights and batch for each case (default: 3)")
    parser.add_argument("--quick", action="store_true", help="three cases, one seed; writes nothing without --json")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name})")
    arguments = parser.parse_args()

    names = QUICK if arguments.quick else tuple(CASES)
    seeds = range(1 if arguments.quick else arguments.seeds)
    sizes = (1.0, 1e-2, 1e-4) if arguments.quick else SIZES
    start = perf_counter()
    counts = contest(names, seeds, sizes)
    Console(width=WIDTH).print(table(counts))
    path = arguments.json or (None if arguments.quick else RESULTS)
    if path:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(figures(counts, names, seeds, perf_counter() - start), indent=2) + "\n")


if __name__ == "__main__":
    main()
