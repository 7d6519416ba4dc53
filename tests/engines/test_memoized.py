"""Calls of modules upstream of the perturbed parameter are answered from memory, and nobody notices by the values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.engines import memoized
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.memoized import MemoizedEngine

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CALLS: Counter[str] = Counter()


class Counted(nn.Linear):
    """Counts how often it really runs."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS[f"{self.in_features}-{self.out_features}"] += 1
        return super().forward(x)


class Chain(nn.Module):
    """Three layers with functions of no module between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Counted(4, 6), Counted(6, 3), Counted(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sin(self.b(torch.tanh(self.a(x)))))


class WritesToOutputs(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).mul_(2)).add_(1))


class ReadsOthers(Chain):
    """`b` depends on a weight that it does not hold."""

    def __init__(self) -> None:
        super().__init__()
        weight, forward = self.a.weight, self.b.forward
        self.b.forward = lambda x: forward(x) * weight.sum()  # type: ignore[method-assign]


class Twice(Chain):
    """One module called on two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)) + self.b(torch.cos(self.a(2 * x))))


class Chooses(nn.Module):
    """What a module gives depends on arguments that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Scaled(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x, by=2.0) + self.inner(x, by=3.0))


class Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor, by: float) -> Tensor:
        return by * super().forward(x)


def in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "writes to outputs": WritesToOutputs,
    "reads others": ReadsOthers,
    "called twice": Twice,
    "arguments": Chooses,
    "training": in_training,
    "recurrent": lambda: nn.Sequential(nn.Linear(4, 3), nn.RNNCell(3, 3), nn.Linear(3, 2)),
}


def engines(build: Callable[[], nn.Module]) -> tuple[EagerEngine, MemoizedEngine, list[Tensor]]:
    torch.manual_seed(1)
    model = build().double()
    state = torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def value() -> float:
        torch.set_rng_state(state)
        with torch.no_grad():
            loss = float(model(X).square().sum())
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        return loss

    parameters = list(model.parameters())
    eager = EagerEngine(value, parameters)
    return eager, MemoizedEngine(eager, model, value, parameters), parameters


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_the_values_are_those_of_the_eager_engine_to_the_bit(build: Callable[[], nn.Module]) -> None:
    eager, remembers, parameters = engines(build)
    for position, parameter in enumerate(parameters):
        coordinates = np.arange(parameter.numel(), dtype=np.int64)
        for step in (1e-3, -1e-6):
            steps = np.full(len(coordinates), step)
            expected = eager.sample(position, coordinates, steps)
            found = remembers.sample(position, coordinates, steps)
            assert found.values.tolist() == expected.values.tolist()
            assert found.steps.tolist() == expected.steps.tolist()


@pytest.mark.parametrize(("position", "runs"), [(0, {"4-6", "6-3", "3-2"}), (2, {"6-3", "3-2"}), (5, {"3-2"})])
def test_what_lies_upstream_does_not_run_again(position: int, runs: set[str]) -> None:
    _, remembers, _ = engines(Chain)
    few = np.zeros(1, dtype=np.int64)
    remembers.sample(position, few, np.array([1e-3]))  # records, and makes sure
    CALLS.clear()
    remembers.sample(position, few, np.array([1e-3]))
    assert set(CALLS) == runs


def test_forwards_are_given_back() -> None:
    _, remembers, _ = engines(ReadsOthers)
    before = {module: vars(module).get("forward") for module in remembers._modules}
    remembers.sample(0, np.zeros(1, dtype=np.int64), np.array([1e-3]))
    assert {module: vars(module).get("forward") for module in remembers._modules} == before


class LooksAtIt(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = Counted(6, 12), Counted(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if sum(y.flatten().tolist()) < 1e9 else 2 * y


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("wrong", [None, "a.bias", "b.weight", "c.weight"])
def test_a_check_of_what_cannot_be_traced(wrong: str | None) -> None:
    torch.manual_seed(0)
    model = LooksAtIt()
    if wrong:
        model.get_parameter(wrong).register_hook(lambda g: 1.001 * g)
    CALLS.clear()
    report = check_module(model, lambda y: y.square().mean(), X)
    assert [row.name for row in report.mismatches] == ([wrong] if wrong else [])
    assert CALLS["4-6"] < CALLS["12-2"]
    assert any("one coordinate at a time" in note for note in report.notes)


class Loop(nn.Module):
    """A field that is called many times, before and after a layer that is perturbed."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.field, self.last, self.calls = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2), calls

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = x + self.field(x) / self.calls
        return self.last(x)


@pytest.mark.parametrize("position", [0, 2], ids=["in the loop", "after it"])
def test_a_module_that_is_called_many_times_is_looked_up_as_often_and_no_more(
    position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: Counter[int] = Counter()
    calls = 40
    equal = memoized._equal

    def counting(one: Tensor, other: Tensor) -> bool:
        compared[0] += 1
        return equal(one, other)

    monkeypatch.setattr(memoized, "_equal", counting)
    _, remembers, _ = engines(lambda: Loop(calls))
    samples = 10
    remembers.sample(position, np.zeros(samples, dtype=np.int64), np.full(samples, 1e-5))
    assert compared[0] <= 3 * calls * samples
