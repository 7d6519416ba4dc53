"""Values that J reads to decide by: guarded in the record, and J itself where they come out differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.zoo.deciding import Adaptive, Experts, FixedPoint
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.recording.displaced import displacements
from torch_gradcheck.engines.traced.untraceable import Strayed, Untraceable


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Reading(nn.Module):
    """A linear layer whose output goes through a function that reads values."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def numbers_of_signs(y: Tensor) -> Tensor:
    signs, counts = torch.unique((y > 0).long(), return_counts=True)
    return y.sin() * signs.sum() + counts[0]


def sorted_apart(y: Tensor) -> Tensor:
    count = int((y > 0).sum())
    left, right = y.flatten().sort().values.split([y.numel() - count, count])
    return torch.cat([left.sin(), right.square()])


def assigned(y: Tensor) -> Tensor:
    best = np.asarray(y.argmax(1))  # as a solver outside of torch gets its indices
    return y[torch.arange(len(y)), torch.from_numpy(best)].square()


def repeated(y: Tensor) -> Tensor:
    return torch.repeat_interleave(y, (y[:, 0] > 0).long() + 1, dim=0).sin()


READING: dict[str, Callable[[Tensor], Tensor]] = {
    "branch": lambda y: y.sin() if y.sum() > 0 else y.square(),
    "all": lambda y: y.sin() if (y < 1.7).all() else y.square(),
    "equal": lambda y: y.sin() if torch.equal(y.argmax(1), y.sin().argmax(1)) else y.square(),
    "allclose": lambda y: y.sin() if torch.allclose(y, y.clamp(max=1.7), atol=1e-3) else y.square(),
    "mask": lambda y: y[y > 0].sin(),
    "masked_select": lambda y: y.masked_select(y > 0).square(),
    "nonzero": lambda y: y.relu().nonzero().double().mean() * y,
    "written by mask": lambda y: y.masked_fill(y < 0, 0.0) + y.clone().index_put((y > 1,), torch.tensor(3.0)),
    "unique": numbers_of_signs,
    "bincount": lambda y: torch.bincount(y.argmax(1), weights=y.sin().sum(1), minlength=4),
    "count": sorted_apart,
    "list": lambda y: sum((y[k, i].sin() for k, i in enumerate(y.argmax(1).tolist())), torch.zeros(())),
    "numpy": assigned,
    "repeated": repeated,
    "formatted": lambda y: y.sin() if f"{y.argmax()}" < "3" else y.square(),
    "looked up": lambda y: [y.sin(), y.cos(), y.square(), y][y[0].argmax()],
}

UNREAD = {"written by mask"}
"""Decided inside of torch, where no value is read."""


def still_moving(y: Tensor) -> Tensor:
    """Iterates as long as a number of Python is above a bound."""
    z, residual, left = torch.zeros_like(y), 1.0, 30
    while residual > 1e-3 and left:
        before, z, left = z, torch.tanh(0.3 * z.roll(1, 1) + y), left - 1
        residual = (z - before).norm().item()
    return z


READING |= {
    "number in a bound": lambda y: y.sin() if y.sum().item() > 0.3 else y.square(),
    "numbers compared": lambda y: y.sin() if y[0].norm().item() > y[1].norm().item() else y.square(),
    "number rounded": lambda y: y * round(y.norm().item()),
    "numbers of an iteration": still_moving,
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "experts": Experts,
    "fixed point": FixedPoint,
    "adaptive steps": Adaptive,
    **{name: partial(Reading, function) for name, function in READING.items()},
}


def posed(model: nn.Module) -> tuple[Callable[[], Tensor], list[nn.Parameter]]:
    x = torch.randn(6, 4)
    return lambda: model(x).square().mean(), list(model.parameters())


def values(engine: Any, parameters: list[nn.Parameter], size: float) -> np.ndarray[Any, Any]:
    """J along every coordinate by random steps of about this size."""
    random = np.random.default_rng(0)
    found = []
    for position, parameter in enumerate(parameters):
        coordinates = random.permutation(np.arange(parameter.numel()).repeat(2))
        steps = size * random.standard_normal(len(coordinates))
        found.append(engine.sample(position, coordinates, steps).values)
    return np.concatenate(found)


@pytest.mark.slow_but_for(8)
@pytest.mark.parametrize("name", MODELS)
def test_the_record_is_J_for_steps_of_any_size(name: str) -> None:  # noqa: N802
    objective, parameters = posed(MODELS[name]())
    calls: list[int] = []

    def counted() -> Tensor:
        calls.append(1)
        return objective()

    engine, eager = TracedEngine(counted, parameters), EagerEngine(lambda: float(objective().detach()), parameters)
    calls_to_record = len(calls)
    for size in (1e-6, 1e-2, 1.0):
        found = values(engine, parameters, size)
        np.testing.assert_allclose(found, values(eager, parameters, size), rtol=1e-13, atol=1e-13)
        assert size > 1e-6 or not engine.by_eager
    assert (engine.by_eager > 0) == (name not in UNREAD), "some of the largest steps change what J reads"
    assert len(calls) == calls_to_record + engine.by_eager


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda y: y * y.abs().max().item(), id="a factor"),
        pytest.param(lambda y: y - y.max().item() + y.max().item(), id="taken away and added"),
        pytest.param(lambda y: y + torch.full_like(y, y.sum().item()), id="filled in"),
        pytest.param(lambda y: y + torch.tensor([y.sum().item()]), id="a new tensor"),
        pytest.param(lambda y: y.roll(int(1e4 * y.sum().item())), id="shifted by it"),
        pytest.param(lambda y: y.sin() if y[0].norm().item() > 0.999 * y[0].norm().item() else y, id="close together"),
        pytest.param(lambda y: y * (1 / (y.sum().item() == y.sum().item())), id="an error"),
        pytest.param(lambda y: sum((y * (e.item() > 0) for e in y.repeat(3, 1).flatten()), y), id="too many"),
    ],
)
def test_numbers_that_go_back_into_J_end_the_recording(function: Callable[[Tensor], Tensor]) -> None:  # noqa: N802
    objective, parameters = posed(Reading(function))
    with pytest.raises(Untraceable, match=r"_local_scalar_dense.*takes a value to Python that depends") as raised:
        TracedEngine(objective, parameters)
    assert isinstance(raised.value.module, Reading)


@pytest.mark.parametrize("reads", [1, 2, 5, 64])
def test_every_two_reads_are_displaced_alike_and_against_each_other(reads: int) -> None:
    runs = displacements(reads)
    assert len(runs) <= 14
    for one in range(reads):
        for other in range(one):
            assert {(run[one] > 0, run[other] > 0) for run in runs} == set(product([True, False], repeat=2))


@pytest.mark.parametrize("name", ["experts", "adaptive steps", "fixed point"])
def test_the_gradient_of_a_guarded_record_is_that_of_J(name: str) -> None:  # noqa: N802
    objective, parameters = posed(MODELS[name]())
    expected = torch.autograd.grad(objective(), parameters)
    for found, own in zip(TracedEngine(objective, parameters).gradients(), expected, strict=True):
        torch.testing.assert_close(found, own)


def test_where_its_guards_do_not_hold_a_record_has_the_value_of_J_itself() -> None:  # noqa: N802
    objective, parameters = posed(MODELS["branch"]())
    engine = TracedEngine(objective, parameters)
    before = objective().item()
    with torch.no_grad():
        parameters[1].add_(1)
        assert engine.value() == objective().item() != before
        assert engine.by_eager == 1
        with pytest.raises(Strayed, match="takes another value to Python with all parameters moved") as raised:
            engine.confirm(objective().item(), 1e-13)
    assert raised.value.upstream == {0, 1}
    assert raised.value.op == "aten._local_scalar_dense.default"


def test_only_parameters_upstream_of_a_guard_stray() -> None:
    first, last, x = nn.Linear(4, 4), nn.Linear(4, 1), torch.randn(6, 4)
    tied = nn.Parameter(torch.zeros(2))

    def objective() -> Tensor:
        hidden = first(x) * (1 + tied[tied.argmax()])  # a tie at θ, that every step upwards of the second one breaks
        return last(hidden.sin() if int(tied.argmax()) == 0 else hidden).square().mean()

    parameters = [tied, *first.parameters(), *last.parameters()]
    engine, eager = TracedEngine(objective, parameters), EagerEngine(lambda: float(objective().detach()), parameters)
    np.testing.assert_allclose(values(engine, parameters, 0.1), values(eager, parameters, 0.1), rtol=1e-13)
    assert 0 < engine.by_eager <= 4
    with pytest.raises(Untraceable, match=r"aten.*takes another value to Python under most small perturbations"):
        engine.sample(0, np.ones(64, dtype=np.int64), np.full(64, 1e-6))


def test_memory_shared_with_numpy_may_be_written_there() -> None:
    model, x = nn.Linear(4, 4), torch.randn(6, 4)

    def objective() -> Tensor:
        y = model(x)
        best = y.argmax(1)
        best.numpy()[:] = 2
        return y[torch.arange(6), best].square().mean()

    parameters = list(model.parameters())
    engine, eager = TracedEngine(objective, parameters), EagerEngine(lambda: float(objective().detach()), parameters)
    np.testing.assert_allclose(values(engine, parameters, 0.1), values(eager, parameters, 0.1), rtol=1e-13)


def test_memory_shared_with_numpy_must_be_constant() -> None:
    model, x = nn.Linear(4, 4), torch.randn(6, 4)

    def objective() -> Tensor:
        y = model(x)
        order = y.argsort(1)
        order[:, 0].numpy()
        return y.gather(1, order).cumsum(1).square().mean()

    with pytest.raises(Untraceable, match="memory shared with others than torch that depends on a parameter in part"):
        TracedEngine(objective, list(model.parameters()))
