"""Promise: a check of a function changes nothing of the caller's, on return and on any exception."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.interruptions import exception_of
from tests.zoo.snapshot import Snapshot
from torch_gradcheck import check_function

RNG = torch.Generator().manual_seed(19)


@pytest.fixture(autouse=True)
def random_state_of_its_own() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def used() -> tuple[Tensor, Tensor]:
    """A leaf that a training step has used, with a gradient, a hook and a history, and a view of other memory."""
    x = torch.randn(4, 3, generator=RNG).requires_grad_()
    x.register_hook(lambda gradient: gradient)
    x.square().sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        x.mul_(2)
    return x, torch.randn(8, 3, generator=RNG)[::2]


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(inplace=True))


def writing(x: Tensor, y: Tensor) -> Tensor:
    return x.mul_(y).add_(1)


def calling(model: nn.Module) -> Callable[..., Any]:
    return lambda x, y, model=model: model(x) + y.sum()


WEIGHT = torch.randn(3, generator=RNG).requires_grad_()

FUNCTIONS: dict[str, Callable[[], Callable[..., Any]]] = {
    "plain": lambda: lambda x, y: (x * y).sin() * torch.rand(3),
    "writes to its arguments": lambda: writing,
    "captures": lambda: lambda x, y: x * WEIGHT + y,
    "calls a module": lambda: calling(layer()),
    "leaves": lambda: lambda x, y: x.register_hook(lambda g: g) and x * y if x.requires_grad else x * y,
}


@pytest.mark.parametrize("make", FUNCTIONS.values(), ids=FUNCTIONS)
def test_after_a_check_of_a_function(make: Callable[[], Callable[..., Any]]) -> None:
    function, inputs = make(), used()
    before = Snapshot(inputs=list(inputs), weight=WEIGHT, defaults=list(function.__defaults__ or ()))
    check_function(function, inputs)
    assert before.changes() == []


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_after_a_check_of_a_module(training: bool) -> None:
    model, (x, _) = layer().train(training), used()
    before = Snapshot(model=model, x=x)
    check_function(model, (x,))
    assert before.changes() == []


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize("call", [1, 2, 3, 5, 8, 20, 40, 60, 70, 80, 90, 100])
def test_after_an_exception_in_any_call(call: int) -> None:
    """In the check of J it comes through; inside of the contract it becomes an entry."""
    calls, inputs = itertools.count(1), used()

    def fails(x: Tensor, y: Tensor) -> Tensor:
        if next(calls) == call:
            raise ZeroDivisionError
        return x * y * torch.rand(3)

    before = Snapshot(inputs=list(inputs))
    exception_of(lambda: check_function(fails, inputs))
    assert before.changes() == []
