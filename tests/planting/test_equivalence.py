"""What `blind_spots` says of a fault is what `check_module` says of a model that really has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.sweeps import ALL
from torch_gradcheck import BlindSpot, blind_spots, check_module


class Wrong(torch.autograd.Function):
    """The identity, with a backward that changes the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.change(gradient), None


class Residual(nn.Module):
    """x + gate · tanh(W x), and a layer that is never used."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.inner, self.gate, self.spare = nn.Linear(4, 4), nn.Parameter(torch.tensor(gate)), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * torch.tanh(self.inner(x))


class Tied(nn.Module):
    """An embedding whose table is the output layer's weight; half of it never occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.out = nn.Embedding(8, 4), nn.LayerNorm(4), nn.Linear(4, 8, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(self.table(tokens)))


class Recurrent(nn.Module):
    """A cell that is called three times; its last state only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act, self.head = nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        for step in range(3):
            state = self.act(self.cell(torch.cat([x[:, step], state], dim=1)))
        return self.head(state)


class Detached(nn.Module):
    """One layer under no_grad, one whose output is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.still, self.lost = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            still = self.still(x)
        hidden = self.first(x)
        self.lost(hidden)
        return torch.tanh(hidden) + 0 * still


class Checkpointed(nn.Module):
    """The middle runs again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 2), reentrant
        self.middle = nn.Sequential(nn.LayerNorm(4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.middle, self.first(x), use_reentrant=self.reentrant))


class Faint(nn.Module):
    """One layer that hardly counts."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.loud, self.faint, self.factor = nn.Linear(4, 4), nn.Linear(4, 4), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.loud(x) + self.factor * torch.tanh(self.faint(x))


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].bias[3] = -50.0  # type: ignore[index]
    return model


def attending() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Flatten(), nn.Linear(12, 2))


def convolving() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))


X, SEQUENCES, TOKENS = (5, 4), (5, 3, 4), torch.tensor([[0, 1], [2, 3], [1, 0]])

MODELS: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "dead unit": (dead, X, "eval"),
    "dead unit, dropout on": (dead, X, "train"),
    "closed gate": (lambda: nn.Sequential(nn.Linear(4, 4), Residual(0.0), nn.Linear(4, 2)), X, "eval"),
    "open gate": (lambda: nn.Sequential(nn.Linear(4, 4), Residual(1.0), nn.Linear(4, 2)), X, "eval"),
    "tied": (Tied, TOKENS, "eval"),
    "recurrent": (Recurrent, SEQUENCES, "eval"),
    "lstm": (lambda: nn.Sequential(nn.LSTM(4, 3, batch_first=True), First(), nn.Linear(3, 2)), SEQUENCES, "eval"),
    "detached": (Detached, X, "eval"),
    "attention": (attending, SEQUENCES, "eval"),
    "checkpoint": (lambda: Checkpointed(False), X, "eval"),
    "reentrant checkpoint": (lambda: Checkpointed(True), X, "eval"),
    "faint": (lambda: Faint(1e-9), X, "eval"),
    "below the noise": (lambda: Faint(1e-18), X, "eval"),
    "batch norm": (convolving, (5, 3, 4), "train"),
}


class First(nn.Module):
    """The first of several."""

    def forward(self, several: tuple[Tensor, Any]) -> Tensor:
        return several[0]


def squared(y: Tensor) -> Tensor:
    return (y - 1).square().mean()


def made(name: str) -> tuple[nn.Module, Any, str]:
    torch.manual_seed(1)
    build, batch, mode = MODELS[name]
    return build(), batch if isinstance(batch, Tensor) else torch.randn(batch), mode


def changed(fault: str) -> Callable[[Tensor], Tensor]:
    """The change that a fault makes, read from its words."""
    if "scaled" in fault:
        return lambda gradient: 1.01 * gradient
    if "flipped" in fault:
        return lambda gradient: -gradient
    if "zeroed" in fault:
        return torch.zeros_like

    def without_the_entry(gradient: Tensor) -> Tensor:
        found = re.search(r"entry \[([\d, ]+)\]", fault)
        gradient = gradient.clone()
        gradient[tuple(map(int, found[1].split(", "))) if found else ()] = 0
        return gradient

    return without_the_entry


@contextmanager
def with_fault(model: nn.Module, row: BlindSpot) -> Iterator[None]:
    """The model really has the fault inside the block."""
    module, change = model.get_submodule(row.module), changed(row.fault)

    def replaced(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(replaced(_, __, each) for each in output)
        return Wrong.apply(output, change) if isinstance(output, Tensor) else output

    if row.fault.startswith("output gradient"):
        handle = module.register_forward_hook(replaced)
    else:
        own = re.match(r"gradient of ([^\s,]+)", row.fault)
        assert own
        handle = module.get_parameter(own[1]).register_hook(change)
    try:
        yield
    finally:
        handle.remove()


def is_a_sample(number: int, row: BlindSpot) -> bool:
    found, not_found = (9, 4) if ALL else (18, 8)
    return "left out" not in row.fault and number % (found if row.found else not_found) == 0


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize("name", MODELS)
def test_a_planted_fault_is_found_by_a_check_where_it_is_said_to_be(name: str) -> None:
    model, batch, mode = made(name)
    spots = blind_spots(model, squared, batch, mode=mode)  # type: ignore[arg-type]
    for number, row in enumerate(spots):
        if is_a_sample(number, row):
            with with_fault(model, row):
                report = check_module(model, squared, batch, mode=mode)  # type: ignore[arg-type]
            assert bool(report.mismatches) is row.found, (row, report)
