"""`released`: what a run has made is freed with its graph, or told."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from tests.contract.made_functions import drawn, function, tried

X = drawn(3, 4)

GLOBAL: list[Any] = []
TABLE: dict[Any, torch.Tensor] = {}


def _saves_output(ctx: Any, x: Any) -> Any:
    y = x.exp()
    ctx.save_for_backward(y)
    return y


def _keeps_output(ctx: Any, x: Any) -> Any:
    ctx.y = x.exp()
    return ctx.y


def _keeps_intermediate(ctx: Any, x: Any) -> Any:
    ctx.e = x.exp()
    return ctx.e.clone()


def _refers_to_itself(ctx: Any, x: Any) -> Any:
    ctx.save_for_backward(x)
    ctx.me = [ctx]
    return x.exp()


def _global(ctx: Any, x: Any) -> Any:
    GLOBAL.append(x)
    return _saves_output(ctx, x)


def _last(ctx: Any, x: Any) -> Any:
    GLOBAL[:] = [x.detach()]
    return _saves_output(ctx, x)


def _with_table(ctx: Any, x: Any) -> Any:
    if x.dtype not in TABLE:
        TABLE[x.dtype] = torch.arange(4, dtype=x.dtype)
    ctx.save_for_backward(TABLE[x.dtype])
    return x * TABLE[x.dtype]


def _times_saved(ctx: Any, g: Any) -> Any:
    return g * ctx.saved_tensors[0]


def _keeps_gradient(ctx: Any, g: Any) -> Any:
    GLOBAL.append(g)
    return g * ctx.saved_tensors[0]


class _Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weights = x.softmax(-1)
        return self.weights * x


class _History(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.history.append(x.sin())
        return self.history[-1] * 2


RIGHT = {
    "output saved": function("Exp", _saves_output, _times_saved),
    "intermediate kept as an attribute": function("Exp", _keeps_intermediate, lambda ctx, g: g * ctx.e),
    "a table that is computed once": function("Table", _with_table, _times_saved),
    "input returned": lambda x: (x, x.sin()),
    "checkpoint": lambda x: checkpoint(torch.sin, x, use_reentrant=False),
    "module": nn.Linear(4, 3),
    "view": lambda x: x.view(-1)[2:],
}

WRONG = {
    "output kept as an attribute": (
        function("Exp", _keeps_output, lambda ctx, g: g * ctx.y),
        [
            "the forward has run (Exp.forward at tests/contract/test_released.py:",
            "x, output should be freed with it, but references lead in a circle: ",
            "ctx.y of Exp holds the graph",
        ],
    ),
    "context that refers to itself": (
        function("Exp", _refers_to_itself, lambda ctx, g: g * ctx.saved_tensors[0].exp()),
        ["x should be freed with it", "waits for Python's garbage collector"],
    ),
    "kept in a global": (
        function("Exp", _global, _times_saved),
        ["x should be freed with it", "something outside of the graph still refers to"],
    ),
    "last input kept in a global": (function("Exp", _last, _times_saved), ["x should be freed with it"]),
    "gradient kept by the backward": (
        function("Exp", _saves_output, _keeps_gradient),
        ["forward and backward have run (Exp.backward at ", "the gradient of output should be freed"],
    ),
    "history of a module": (
        _History(),
        ["the forward has run (_History.forward at ", "should be freed with it", "something outside of the graph"],
    ),
}


@pytest.fixture(autouse=True)
def _empty() -> Any:
    yield
    GLOBAL.clear()
    gc.collect()


@pytest.mark.parametrize("run", RIGHT.values(), ids=RIGHT)
def test_what_is_freed_passes(run: Any) -> None:
    entry = tried("released", run, X)
    assert (entry.status, entry.message) == ("passed", "")


@pytest.mark.parametrize(("run", "words"), WRONG.values(), ids=WRONG)
def test_what_stays_fails(run: Any, words: list[str]) -> None:
    entry = tried("released", run, X)
    assert entry.status == "failed", entry.message
    for each in words:
        assert each in entry.message


def test_a_module_may_keep_its_last_call() -> None:
    entry = tried("released", _Attention(), X)
    assert (entry.status, entry.message) == ("passed", "a module keeps x of its last call until the next one")


@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
@pytest.mark.parametrize(
    "run", [RIGHT["output saved"], WRONG["output kept as an attribute"][0]], ids=["freed", "not freed"]
)
def test_the_collector_is_as_it_was(enabled: bool, run: Any) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        tried("released", run, X)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_hooks_on_saved_tensors_around_the_check_keep_nothing() -> None:
    with save_on_cpu():
        assert tried("released", torch.tanh, X).status == "passed"
        assert tried("released", function("Exp", _keeps_output, lambda ctx, g: g * ctx.y), X).status == "failed"
