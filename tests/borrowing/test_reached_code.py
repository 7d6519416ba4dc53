"""What the code of a module gets at is known, and every change of it is seen; what cannot be looked into is unknown."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.borrowing.reach import Reach
from torch_gradcheck.borrowing.reached_code import Reaches

COUNTS: dict[str, int] = {"calls": 1}

STATE = {"value": 0.5}


class Holder:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def method(self) -> Any:
        return STATE


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1.0


class Module(nn.Module):
    shared: list[float] = []  # noqa: RUF012

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.number = 1.5
        self.__dict__.update(held)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.helper()

    def helper(self) -> float:
        return STATE["value"]

    def unrelated(self) -> Any:
        return UNRELATED


UNRELATED = [itertools.count()]


def reach_of(module: nn.Module) -> Reach | None:
    return Reaches([module]).known.get(module)


def setting(name: str, value: Any) -> Callable[[Module], None]:
    return lambda module: setattr(module, name, value)


def in_closure() -> tuple[Callable[[], int], Callable[[int], None]]:
    count = 0

    def read() -> int:
        return count

    def write(value: int) -> None:
        nonlocal count
        count = value

    return read, write


READ, WRITE = in_closure()


def tagged(tag: Any) -> Tensor:
    tensor = torch.ones(1)
    tensor.tag = tag  # type: ignore[attr-defined]
    return tensor


CHANGES: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "an attribute": ({}, setting("number", 2.5)),
    "a new attribute": ({}, setting("logits", torch.ones(1))),
    "a flag": ({}, lambda module: module.inner.eval()),
    "an attribute of an inner module": ({}, lambda module: setattr(module.inner, "bias", None)),
    "a parameter in place": ({}, lambda module: module.inner.weight.mul_(2)),
    "other memory": ({}, lambda module: setattr(module.inner.weight, "data", torch.ones(2, 2))),
    "a list": ({"seen": []}, lambda module: module.seen.append(1)),
    "a list in a tuple": ({"seen": ([],)}, lambda module: module.seen[0].append(1)),
    "an object": ({"held": Holder(a=1.5)}, lambda module: setattr(module.held, "a", 2.5)),
    "an object in a list": ({"held": [Holder(a=[])]}, lambda module: module.held[0].a.append(1)),
    "a slot": ({"held": Slots()}, lambda module: setattr(module.held, "value", 3.0)),
    "a slot that is emptied": ({"held": Slots()}, lambda module: delattr(module.held, "value")),
    "a global": ({}, lambda _: STATE.update(value=0.7)),
    "a list of the class": ({}, lambda _: Module.shared.append(1.0)),
    "an attribute of the class": ({}, lambda _: setattr(Module, "shared", [])),
    "a closure": ({"read": READ}, lambda _: WRITE(1000)),
    "a partial": ({"held": functools.partial(print, [])}, lambda module: module.held.args[0].append(1)),
    "a bound method": ({"held": Holder(a=1).method}, lambda module: setattr(module.held.__self__, "a", 2)),
    "a method of a builtin": ({"held": [].append}, lambda module: module.held(1)),
    "an attribute of a tensor": ({"held": tagged(1.5)}, lambda module: setattr(module.held, "tag", 2.5)),
    "a hook": ({}, lambda module: module.inner.register_forward_hook(print)),
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Any:
    yield
    WRITE(0)
    STATE.update(value=0.5)
    Module.shared = []


@pytest.mark.parametrize(("held", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(held: dict[str, Any], change: Callable[[Any], Any]) -> None:
    module = Module(**held)
    reach = reach_of(module)
    assert reach is not None
    assert reach.is_as_before()
    with torch.no_grad():
        change(module)
    assert not reach.is_as_before()


UNKNOWN = {
    "an iterator": itertools.count(),
    "a generator of numbers": torch.Generator(),
    "Python's generator": random.Random(0),
    "an array": np.zeros(2),
    "a cache": functools.lru_cache(list),
    "a large container": list(range(5000)),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "in an object": Holder(a=[iter([])]),
}


@pytest.mark.parametrize("held", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_looked_into_is_unknown(held: Any) -> None:
    assert reach_of(Module(held=held)) is None


def test_what_moves_from_one_place_to_another_is_a_change() -> None:
    module = Module(first=[1, 2], second=[])
    reach = reach_of(module)
    assert reach is not None
    module.second.append(module.first.pop())
    assert not reach.is_as_before()


def test_hooks_make_it_unknown() -> None:
    module = Module()
    module.inner.register_forward_hook(print)
    assert reach_of(module) is None
    assert reach_of(module.inner) is None


def test_methods_that_no_code_names_stay_out() -> None:
    assert reach_of(Module()) is not None
    assert not any(item is UNRELATED for watch in reach_of(Module()).watches for item in watch.before)


def test_equal_numbers_are_no_change() -> None:
    module = Module(held=[1e300])
    reach = reach_of(module)
    assert reach is not None
    module.number, module.held[0] = float("1.5"), float("1e300")
    assert reach.is_as_before()
    module.number = 1  # type: ignore[assignment]
    assert not reach.is_as_before()


class Counts(Module):
    def forward(self, x: Tensor) -> Tensor:
        COUNTS["calls"] += 1
        self.number += 1
        return self.inner(x)


def test_numbers_that_move_on_are_tallies() -> None:
    module = Counts()
    reaches = Reaches([module])
    module(torch.ones(2))
    reaches.learn_tallies()
    reach = reaches.known[module]
    assert reach.is_as_before()
    module(torch.ones(2))
    COUNTS.clear()
    assert reach.is_as_before()
    COUNTS["calls"] = 1
    module.other = 1
    assert not reach.is_as_before()
