from __future__ import annotations

import functools
import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.borrowing.captures import MANY, captures_of

T = torch.ones(3)
M = nn.Linear(2, 2)
UNUSED = torch.zeros(9)
SIX = torch.ones(6)


def names_a_global(y: Tensor) -> Tensor:
    return (y * T).sum()


def names_a_global_inside() -> list[Tensor]:
    return [(lambda: T)() for _ in range(2)]


class Loss:
    def __init__(self, weight: Tensor, module: nn.Module) -> None:
        self.weights, self.nested = [weight], {"module": module}

    def __call__(self, y: Tensor) -> Tensor:
        return y.sum()

    def method(self, y: Tensor) -> Tensor:
        return y.sum()


class CallsAGlobal:
    def __call__(self, y: Tensor) -> Tensor:
        return y * T


def closure_over(*values: Any) -> Callable[[], Any]:
    return lambda: values


def cell_not_filled() -> Callable[[], Any]:
    def function() -> Any:
        return later

    if not callable(function):
        later = 1
    return function


def found(function: Any) -> tuple[list[nn.Module], list[Tensor]]:
    captures = captures_of(function)
    return list(captures.modules.values()), list(captures.tensors.values())


def default(y: Tensor, weight: Tensor = T, *, module: nn.Module = M) -> Tensor:
    return y


BOTH = {
    "closure": closure_over(T, M),
    "in a list in a closure": closure_over([T, (M,)]),
    "defaults": default,
    "partial": functools.partial(print, T, end=M),
    "partial of a partial": functools.partial(functools.partial(print, T), M),
    "object": Loss(T, M),
    "bound method": Loss(T, M).method,
    "partial of a bound method": functools.partial(Loss(T, M).method, 1),
    "function in a closure": closure_over(closure_over(T, M)),
}


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
def test_what_it_holds_is_found(function: Any) -> None:
    modules, tensors = found(function)
    assert [id(module) for module in modules] == [id(M)]
    assert {id(tensor) for tensor in tensors} == {id(T), id(M.weight), id(M.bias)}


GLOBALS = {"function": names_a_global, "inner function": names_a_global_inside, "__call__": CallsAGlobal()}


@pytest.mark.parametrize("function", GLOBALS.values(), ids=GLOBALS)
def test_globals_that_the_code_names(function: Any) -> None:
    _, tensors = found(function)
    assert [id(tensor) for tensor in tensors] == [id(T)]


def test_globals_that_it_does_not_name_stay_out() -> None:
    assert id(UNUSED) not in captures_of(names_a_global).tensors


def test_a_module_with_all_inside_of_it() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))
    for holder in (net, net.forward):
        modules, tensors = found(holder)
        assert modules == list(net.modules())
        assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in net.state_dict(keep_vars=True).values()}


def test_all_tensors_of_a_module_however_many() -> None:
    many = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(MANY + 1)])
    assert len(captures_of(many).tensors) == MANY + 1


def test_each_once() -> None:
    modules, tensors = found(closure_over(T, [T, T], M, {"m": M}))
    assert (len(modules), len(tensors)) == (1, 3)


class Holder:
    def __init__(self, *held: Any) -> None:
        self.held = held


def test_every_kind_where_it_belongs() -> None:
    array, generator, own = np.zeros(3), torch.Generator(), random.Random(0)
    inside, queue = {"a": array}, deque([own])
    holder = Holder(inside, [generator], queue)
    net, counted = nn.Linear(1, 1), list[int]()
    net.helper = holder
    net.register_forward_hook(lambda *_: counted.append(1))
    found = captures_of(net)
    assert list(found.arrays) == [id(array)]
    assert set(found.generators) == {id(generator), id(own)}
    assert {id(inside), id(queue)} <= set(found.containers)
    assert list(found.objects) == [id(holder)]
    assert id(counted) not in found.containers, "what a function counts, it counts on purpose"
    assert not captures_of(closure_over(holder)).objects


@pytest.mark.parametrize("value", [threading.Lock(), threading.current_thread(), logging.getLogger(), np, Holder])
def test_what_is_no_state_of_a_models_stays_out(value: Any) -> None:
    net = nn.Linear(1, 1)
    net.held = value
    assert not captures_of(net).objects


def test_circles_end() -> None:
    circle: list[Any] = [T]
    circle.append(circle)
    assert found(closure_over(circle))[1] == [T]


@pytest.mark.parametrize("function", [cell_not_filled(), print, len, torch.sum, int], ids=attrgetter("__name__"))
def test_nothing_to_find(function: Any) -> None:
    assert found(function) == ([], [])


def test_far_away_is_not_searched() -> None:
    far: Any = T
    for _ in range(20):
        far = [far]
    assert found(closure_over(far)) == ([], [])


class Step:
    """Holds tensors beside an optimizer and a module, and calls a helper."""

    def __init__(self) -> None:
        self.z, self.inner = torch.ones(1), {"w": torch.ones(2)}
        self.module, self.optimizer = nn.Linear(2, 2), torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=1.0)

    def run(self) -> None: ...

    def __call__(self) -> Tensor:
        return T


def closed_over() -> Callable[[], Any]:
    x, xs, step = torch.ones(4), [torch.ones(5)], Step()
    weight = step.module.weight

    def helper() -> Any:
        return x, weight

    return lambda default=SIX: (helper(), xs, step.run, T, default)


def named(*holders: Any) -> dict[str, int]:
    """The expression for each tensor → its number of entries."""
    found = captures_of(*holders)
    return {found.names[key]: tensor.numel() for key, tensor in found.tensors.items() if key in found.names}


def test_tensors_have_the_names_by_which_code_gets_at_them() -> None:
    assert named(closed_over()) == {
        "x": 4,
        "weight": 4,
        "step.z": 1,
        "step.inner['w']": 2,
        "xs[0]": 5,
        "default": 6,
        "T": 3,
    }


def test_names_of_what_is_bound() -> None:
    assert named(Step().run) == {"self.z": 1, "self.inner['w']": 2, "T": 3}
    assert named(Step()) == {"self.z": 1, "self.inner['w']": 2, "T": 3}
    assert named(functools.partial(print, torch.ones(1), sep=torch.ones(2))) == {"args[0]": 1, "sep": 2}
    run = Step().run
    assert named(lambda: run) == {"run.__self__.z": 1, "run.__self__.inner['w']": 2, "T": 3}


def test_what_a_module_holds_has_no_name_but_for_plain_attributes() -> None:
    """Parameters, buffers, what is computed and what is held by way of a container have none."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.caches, module.computed = [torch.ones(6)], torch.ones(5).requires_grad_() * 2
    module.__dict__["hidden"] = nn.Parameter(torch.ones(4))
    assert named(lambda: module) == {}
    module.cache, module[0].cache = torch.ones(7), torch.ones(8)
    assert named(lambda: module) == {"module.cache": 7, "module.0.cache": 8}
    holder = {"a": module}
    assert named(lambda: holder["a"]) == {"holder['a'].cache": 7, "holder['a'].0.cache": 8}
    assert named(module.forward) == {"self.cache": 7, "self.0.cache": 8}


def test_an_optimizers_state_is_found_however_many_weights_it_moves_and_however_far_away() -> None:
    weights = [torch.ones(1, requires_grad=True) for _ in range(MANY + 1)]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    for weight in weights:
        weight.grad = torch.ones(1)
    optimizer.step()
    captured = captures_of(closure_over([[optimizer]]))
    momenta = {id(state["momentum_buffer"]) for state in optimizer.state.values()}
    assert momenta <= captured.tensors.keys()
    assert {id(each) for each in (optimizer, optimizer.state, optimizer.param_groups)} <= captured.of_steppers
