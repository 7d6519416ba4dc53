"""Compiled code, and why a check needs it: to put it on trial, part by part, and to leave no trace of that."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from torch_gradcheck.torch_internals import compiler
from torch_gradcheck.torch_internals.compiler import (
    CompiledCall,
    CompiledCode,
    compiled_calls,
    compiler_as_it_was,
    compiler_switch,
    set_compiler_switch,
)


class Counting:
    """A backend that runs a graph as it is, and counts how many it is given."""

    __name__ = "counting"

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


def rectified(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.relu(x)


def test_each_call_of_something_compiled_is_asked_for() -> None:
    backend = Counting()
    linear = nn.Linear(2, 2)
    model: Any = nn.Sequential(torch.compile(linear, backend=backend), nn.Tanh())
    function = torch.compile(rectified, backend="eager")
    calls: list[CompiledCall] = []

    def eagerly(call: CompiledCall) -> bool:
        calls.append(call)
        return False

    with compiled_calls(eagerly):
        function(model(torch.ones(1, 2)))
    assert [call.module for call in calls] == [linear, None]
    assert [call.backend for call in calls] == ["counting", "eager"]
    assert calls[1].function is rectified
    assert calls[0].key != calls[1].key
    assert backend.graphs == 0
    with compiled_calls(lambda call: call.module is linear):
        model(torch.ones(1, 2))
    assert backend.graphs == 1


def test_a_backend_is_found_behind_the_name_that_torch_2_6_has_for_it() -> None:
    backend = Counting()
    wrapped, twice = (lambda: None), (lambda: None)
    wrapped._torchdynamo_orig_callable = backend  # type: ignore[attr-defined]
    twice._torchdynamo_orig_callable = wrapped  # type: ignore[attr-defined]
    assert compiler._backend_of(twice) == "counting"


def test_limits_are_lifted_under_the_names_that_torch_2_6_has_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(cache_size_limit=8, patch=nullcontext)
    monkeypatch.setitem(sys.modules, "made_up_config", config)
    with compiler._patched("made_up_config", {"recompile_limit": 100, "of_another_torch": 1}) as changed:
        assert changed == {"cache_size_limit": 100}


def test_a_stance_of_eager_code_does_not_matter_where_a_call_is_to_run_compiled() -> None:
    backend = Counting()
    model = torch.compile(nn.Linear(2, 2), backend=backend)
    with torch.compiler.set_stance("force_eager"), compiled_calls(lambda _: True):
        model(torch.ones(1, 2))
    assert backend.graphs == 1


def test_what_is_compiled_for_a_check_is_forgotten_and_what_was_there_is_kept() -> None:
    backend = Counting()
    model = torch.compile(nn.Linear(2, 2), backend=backend)
    model(torch.ones(1, 2))
    counters = dict(torch._dynamo.utils.counters["stats"])
    with compiler_as_it_was(draws_as_eager=False), compiled_calls(lambda _: True):
        code = CompiledCode()
        model(torch.ones(1, 2).double().float().expand(3, 2))
        assert code.ran([])
    assert not code.ran([])
    assert dict(torch._dynamo.utils.counters["stats"]) == counters
    graphs = backend.graphs
    assert graphs == 2
    model(torch.ones(1, 2))
    assert backend.graphs == graphs


def test_the_switch_is_put_back_after_an_interrupt() -> None:
    before = compiler_switch()
    block = compiled_calls(lambda _: True)
    block.__enter__()
    assert compiler_switch() is not before
    set_compiler_switch(before)
    assert compiler_switch() is before
    set_compiler_switch(None)
    assert compiler_switch() is before
    del block


@pytest.mark.slow
def test_nothing_here_imports_the_compiler() -> None:
    program = f"""
import sys, torch
from {compiler.__name__} import compiled_calls, compiler_switch, set_compiler_switch
with compiled_calls(lambda call: True):
    torch.nn.Linear(1, 1)(torch.ones(1))
set_compiler_switch(compiler_switch())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
