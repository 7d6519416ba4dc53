"""Gradients that vanish or explode are told with their layers where they are planted, and not in nets that train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_gradcheck import GradientHistory, GradientMonitor, GradientRecord
from torch_gradcheck.monitoring.magnitudes import distance
from torch_gradcheck.monitoring.observations import observed
from torch_gradcheck.monitoring.recorder import record_of

STEPS = (0, 1, 8)
WIDTH = 32


def stack(depth: int, activation: Callable[[], nn.Module], init: Any = None, scale: float = 1.0) -> nn.Sequential:
    """So many hidden layers, their weights drawn by `init` and scaled."""
    hidden = [nn.Linear(20 if k == 0 else WIDTH, WIDTH) for k in range(depth)]
    last = nn.Linear(WIDTH if depth else 20, 10)
    model = nn.Sequential(*[each for layer in hidden for each in (layer, activation())], last)
    for layer in [*hidden, last]:
        if init is not None:
            init(layer.weight)
        with torch.no_grad():
            layer.weight *= scale
    return model


he = partial(nn.init.kaiming_normal_, nonlinearity="relu")


class ResNet(nn.Module):
    """Residual blocks with batch norms; the last of a block may start at 0."""

    def __init__(self, zero_init: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
            for _ in range(4)
        )
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4)), nn.Linear(8, 10)
        for norm in self.norms if zero_init else ():
            nn.init.zeros_(norm.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.unflatten(1, (1, 4, 5)))
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = F.relu(x + norm(block(x)))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.table((x[:, :6] * 20).long().remainder(200))).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.cells, self.head = nn.Linear(1, 8), kind(8, 12, 2, batch_first=True), nn.Linear(12, 10)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(self.embed(x[..., None]))[0][:, -1])


class Gated(nn.Module):
    """Residual branches behind LayerScale, of which there is next to nothing at first (CaiT, ConvNeXt)."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(20, WIDTH), nn.Linear(WIDTH, 10)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)) for _ in range(4)
        )
        self.gates = nn.ParameterList(nn.Parameter(gate * torch.ones(WIDTH)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch, gate in zip(self.branches, self.gates, strict=True):
            x = x + gate * branch(x)
        return self.head(x)


class LoRA(nn.Module):
    """A frozen net with a low-rank update of its first layer, half of which starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.base = stack(2, nn.ReLU).requires_grad_(False)
        self.down, self.up = nn.Linear(20, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        self.head = nn.Linear(10, 10)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base[1:](self.base[0](x) + self.up(self.down(x))))  # type: ignore[operator]


class Dead(nn.Module):
    """A layer of ReLUs that are never on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dead, self.last = nn.Linear(20, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)
        nn.init.constant_(self.dead.bias, -100)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.dead(F.relu(self.first(x)))))


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: stack(3, nn.ReLU),
    "MLP of 7 layers": lambda: stack(7, nn.ReLU),
    "MLP of 10 layers, He": lambda: stack(10, nn.ReLU, he),
    "tanh of 10 layers, Xavier": lambda: stack(10, nn.Tanh, nn.init.xavier_normal_),
    "GELU": lambda: stack(6, nn.GELU),
    "sigmoid of 2 layers": lambda: stack(2, nn.Sigmoid),
    "ResNet": ResNet,
    "ResNet, zero-initialised": lambda: ResNet(zero_init=True),
    "transformer, norm first": lambda: Transformer(norm_first=True),
    "transformer, norm last": lambda: Transformer(norm_first=False),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "RNN": lambda: Recurrent(nn.RNN),
    "LayerScale": lambda: Gated(1e-6),
    "ReZero": lambda: Gated(0.0),
    "LoRA": LoRA,
    "linear, from 0": lambda: stack(0, nn.ReLU, nn.init.zeros_),
    "linear, from next to 0": lambda: stack(0, nn.ReLU, partial(nn.init.normal_, std=1e-5)),
}

cross_entropy = nn.CrossEntropyLoss()


def squared(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(target, 10).float())


def recorded(
    build: Callable[[], nn.Module], steps: Sequence[int] = STEPS, lr: float = 1e-2, loss_fn: Any = cross_entropy
) -> GradientHistory:
    """What a monitor would record of so many steps of SGD, without its checks."""
    torch.manual_seed(0)
    model = build()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=lr)
    rows: list[GradientRecord] = []
    for step in range(max(steps) + 1):
        x = torch.randn(16, 20)
        optimizer.zero_grad()
        loss_fn(model(x), (x[:, :10]).argmax(1)).backward()
        now = [record_of(step, name, each) for name, each in trained.items()] if step in steps else []
        before = {name: each.detach().clone() for name, each in trained.items()}
        optimizer.step()
        rows += [replace(row, update_norm=distance(trained[row.name], before[row.name])) for row in now]
    return GradientHistory(rows)


def said(history: GradientHistory) -> list[str]:
    """The observations on all of the steps, and on the first one alone."""
    return [each.message for each in [*observed(history), *observed(history.at(history.steps[0]))]]


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_of_nets_that_train(name: str) -> None:
    assert said(recorded(RIGHT[name])) == []


@pytest.mark.parametrize("name", ["MLP", "ResNet", "transformer, norm last"])
def test_nor_where_the_loss_is_a_sum(name: str) -> None:
    assert said(recorded(RIGHT[name], lr=1e-4, loss_fn=nn.CrossEntropyLoss(reduction="sum"))) == []


def test_nor_of_inputs_of_another_unit() -> None:
    model = nn.Sequential(nn.Linear(20, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    with torch.no_grad():
        model[0].weight *= 1e-6  # type: ignore[operator]
    assert said(recorded(lambda: nn.Sequential(Scaled(1e6), *model), lr=1e-9)) == []


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


PLANTED: dict[str, tuple[Callable[[], nn.Module], float, str, str]] = {
    "sigmoid of 10 layers": (lambda: stack(10, nn.Sigmoid), 1e-2, "vanishing", "0"),
    "weights ten times too small": (lambda: stack(10, nn.ReLU, he, scale=0.1), 1e-2, "vanishing", "0"),
    "weights ten times too large": (lambda: stack(10, nn.ReLU, he, scale=10), 1e-30, "exploding", "2"),
    "weights from N(0, 1)": (lambda: stack(8, nn.ReLU, nn.init.normal_), 1e-30, "exploding", "2"),
    "weights five times too large, a squared loss": (lambda: stack(5, nn.ReLU, he, scale=5), 1e-2, "exploding", "0"),
    "a learning rate of 300": (lambda: stack(3, nn.ReLU), 300.0, "exploding", "0"),
    "dead units": (Dead, 1e-2, "zero", "dead"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_told_with_its_layer(name: str) -> None:
    build, lr, kind, layer = PLANTED[name]
    loss_fn = squared if "squared" in name else cross_entropy
    found = [each for each in observed(recorded(build, lr=lr, loss_fn=loss_fn)) if each.kind == kind]
    assert len(found) == 1
    assert layer in found[0].layers
    assert found[0].step in STEPS
    assert f"gradient{'s' if kind != 'zero' else ''} in layer" in found[0].message


def test_the_first_step_alone_tells_of_vanishing_and_not_of_zeros() -> None:
    """What stands behind weights that start at 0 has no gradient on the first step."""
    assert [str(each.kind) for each in observed(recorded(lambda: stack(10, nn.Sigmoid), steps=[0]))] == ["vanishing"]
    assert observed(recorded(Dead, steps=[0])) == []


def row(step: int, name: str, norm: float, **facts: Any) -> GradientRecord:
    known = {"grad_max": norm, "grad_mean": norm, "zeros": 0.0, "finite": True, "weight_norm": 1.0, "update_norm": 0.1}
    return GradientRecord(step, name, 1, norm, **{**known, **facts})


@pytest.mark.parametrize(
    ("norms", "told"),
    [
        pytest.param([1, 2, 250], "on step 2 the norm of all of them is 2.5e+02, and was at most 2", id="grown"),
        pytest.param([1, 150, 2], "on step 1 the norm of all of them is 1.5e+02, and was at most 1", id="a spike"),
        pytest.param([1, 50, 2000], "", id="by less than a hundred at a time"),
        pytest.param([1e-4, 1e-4, 0.5], "", id="off a plateau"),
        pytest.param([200, 1, 150], "", id="there and back"),
    ],
)
def test_growth_between_checked_steps(norms: list[float], told: str) -> None:
    history = GradientHistory([row(step, "0.weight", norm) for step, norm in enumerate(norms)])
    assert [each.message for each in observed(history)] == (
        [f"exploding gradients, most in layer 0: {told} on the checked steps before"] if told else []
    )


def test_an_update_that_replaces_the_weights_is_told_where_the_gradient_is_large_too() -> None:
    def history(norm: float) -> GradientHistory:
        return GradientHistory([row(4, f"{k}.weight", norm, update_norm=30.0, update_ratio=30.0) for k in range(2)])

    assert [each.message for each in observed(history(50.0))] == [
        "exploding gradients in layers 0, 1: after step 4 the optimizer moved all weights by 3e+01 times their norm"
    ]
    assert observed(history(0.5)) == [], "weights from next to 0, by Adam"


@pytest.mark.parametrize(("scaled", "updates", "told"), [(False, 0.0, True), (True, 0.0, False), (True, 0.1, True)])
def test_a_step_that_a_scaler_skipped_did_not_explode(scaled: bool, updates: float, told: bool) -> None:
    facts = {"finite": False, "update_norm": updates}
    history = GradientHistory([row(3, "0.weight", float("inf"), **facts), row(3, "1.weight", 1.0, update_norm=updates)])
    messages = [each.message for each in observed(history, scaled)]
    assert messages == (["exploding gradients in layer 0: NaN or infinity in .grad on step 3"] if told else [])


def test_vanishing_says_since_when() -> None:
    sizes = {0: [1.0, 1, 1, 1], 5: [1e-9, 1e-4, 1, 1], 9: [1e-9, 1e-8, 1, 1]}
    rows = [
        row(step, f"{k}.weight", size, error_bar=1e-12) for step, each in sizes.items() for k, size in enumerate(each)
    ]
    (found,) = observed(GradientHistory(rows))
    assert found.layers == ("0", "1")
    assert found.message == (
        "vanishing gradients in layers 0, 1: on step 9 those of 0 are 1e-09 times as large as those of 2 (root mean "
        "square), and so it has been since step 5"
    )


@pytest.mark.parametrize(("error_bar", "told"), [(1e-8, []), (None, []), (1e-10, ["vanishing"])])
def test_what_a_normalization_takes_away_has_no_gradient_but_rounding(error_bar: float | None, told: list[str]) -> None:
    """A shift of its input, as the first of the parameters."""
    sizes = {"shift": 1e-9, "norm.weight": 0.1, "fc.weight": 0.2, "head.weight": 0.5}
    rows = [row(0, name, size, error_bar=error_bar) for name, size in sizes.items()]
    assert [str(each.kind) for each in observed(GradientHistory(rows))] == told


def test_an_observation_is_in_the_summary_and_no_mismatch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[each for _ in range(8) for each in (nn.Linear(3, 3), nn.Sigmoid())], nn.Linear(3, 2))
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    with GradientMonitor(model, cross_entropy, include=["0.weight", "1*.*"]) as monitor:
        cross_entropy(model(x), y).backward()
        monitor.step((x, y))
    first, line = monitor.summary.splitlines()
    assert first == "gradients checked on 1 of 1 training steps, none wrong"
    assert line.startswith("  vanishing gradients in layer 0: on step 0 those of 0 are ")
    assert monitor.reports[0].passed
    assert [str(each.kind) for each in monitor.observations] == ["vanishing"]
