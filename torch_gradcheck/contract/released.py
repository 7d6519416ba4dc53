"""`released`: inputs, outputs and saved tensors are freed with the graph, without the garbage collector.

An output that `ctx` keeps as an attribute holds the graph that holds `ctx`: nothing of it is freed until the garbage
collector of Python happens to run, which on a GPU is after its memory has run out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.contract.functions import functions_behind
from torch_gradcheck.contract.interpreted_kernels import open_circles_of_interpreter
from torch_gradcheck.contract.outcome import failed, passed
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.objective.function_loss import FunctionModule
from torch_gradcheck.objective.function_outputs import inner, outputs_of
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.autograd import nodes_from, saved_tensor_hooks
from torch_gradcheck.torch_internals.custom_ops import name_of_function
from torch_gradcheck.torch_internals.double_backward import kept_by
from torch_gradcheck.torch_internals.tensors import is_wrapper, storage_key, weak_storage

NAME = "released"


def released(trial: Trial) -> ContractEntry:
    """A run whose graph is let go as it is, and one whose graph has run backward: what of them is still in memory."""
    for backward in (False, True):
        with _WithoutCollector(), _hooks_without_circles(), torch.enable_grad(), trial.regime():
            kept = _kept(trial, backward)
        if kept.names and kept.is_replaced and _reaches_modules(trial):
            return passed(NAME, f"a module keeps {listed(kept.names)} of its last call until the next one")
        if kept.names:
            done = "forward and backward have run" if backward else "the forward has run"
            where = trial.backwards if backward else trial.forwards
            return failed(NAME, f"{done}{where} and the graph is gone: {_in_words(kept)}")
    return passed(NAME)


class _Kept(NamedTuple):
    """What of a run is still in memory.

    Attributes:
        names: of the tensors; nothing is kept where there are none.
        is_replaced: whether another run replaces it.
        is_cycle: whether the garbage collector frees it.
        holding: attributes of contexts that hold the graph of their context, such as `"ctx.y of Exp"`.
    """

    names: Sequence[str] = ()
    is_replaced: bool = False
    is_cycle: bool = False
    holding: Sequence[str] = ()


def _kept(trial: Trial, backward: bool) -> _Kept:
    """What two runs have in common is not kept: it is a constant, such as a table that was computed once."""
    first = _seen_in_a_run(trial, backward)
    if first.still_there():
        open_circles_of_interpreter()
    if not first.still_there():
        return _Kept()
    second = _seen_in_a_run(trial, backward)
    open_circles_of_interpreter()
    names = first.still_there(but_for=second)
    if not names:
        return _Kept(second.still_there(but_for=first), is_replaced=True)
    gc.collect()
    return _Kept(names, is_cycle=not first.still_there(but_for=second), holding=first.holding)


def _in_words(kept: _Kept) -> str:
    what = f"{listed(list(kept.names))} should be freed with it"
    if not kept.is_cycle:
        return f"{what}, but something outside of the graph still refers to what is left"
    why = f": {listed(list(kept.holding))} holds the graph that holds ctx" if kept.holding else ""
    return (
        f"{what}, but references lead in a circle{why}. What is left waits for Python's garbage collector; "
        "ctx.save_for_backward keeps outputs without a circle"
    )


def _seen_in_a_run(trial: Trial, backward: bool) -> _Seen:
    """Runs the function on new inputs; when this returns, only the function can still refer to what was seen."""
    seen = _Seen()
    leaves = trial.fresh()
    named = outputs_of(trial.call.called(leaves))
    seen.note(zip(trial.names, leaves, strict=True))
    seen.note(named)
    outputs = [y for _, y in named if y.requires_grad]
    for function, node in functions_behind(outputs):
        seen.note_kept(name_of_function(function), node)
    if backward:
        for name, y in named:
            if y.requires_grad and not y.is_leaf:
                y.register_hook(seen.gradient_of(name))
        gradients_of([inner(v, y) for v, y in zip(trial.cotangents(outputs), outputs, strict=True)], leaves)
    return seen


class _Seen:
    """What a run has made, by name, without keeping it.

    Attributes:
        holding: see `_Kept`.
    """

    def __init__(self) -> None:
        self.holding: list[str] = []
        self._weak: dict[int, tuple[str, Any]] = {}

    def note(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Remembers tensors; one that shares its memory with another goes by the name of the first."""
        for name, tensor in named:
            if tensor.layout is torch.strided and not is_wrapper(tensor):
                self._weak.setdefault(storage_key(tensor), (name, weak_storage(tensor)))

    def note_kept(self, function: str, node: Any) -> None:
        """Remembers what a Function has kept for its backward; `node` is its node in the graph."""
        for name, value in kept_by(node).items():
            tensors = tensors_in(value)
            self.note([(f"{name}{path} of {function}", tensor) for path, tensor in tensors])
            if "ctx.saved_tensors" not in name and node in nodes_from([tensor.grad_fn for _, tensor in tensors]):
                self.holding.append(f"{name} of {function}")

    def gradient_of(self, output: str) -> Callable[[torch.Tensor], None]:
        """A hook that remembers the gradient of an output."""
        return lambda gradient: self.note([(f"the gradient of {output}", gradient)])

    def still_there(self, but_for: _Seen | None = None) -> list[str]:
        """The names of what is still in memory, without what another run has seen as well."""
        others = () if but_for is None else but_for._weak
        return [name for key, (name, weak) in self._weak.items() if key not in others and not weak.expired()]


def _reaches_modules(trial: Trial) -> bool:
    """Whether the function is a module, or has some around it."""
    modules = captures_of(trial.model, *trial.loss.holders).modules.values()
    return any(not isinstance(module, FunctionModule) for module in modules)


def _hooks_without_circles() -> AbstractContextManager[object]:
    """In place of hooks on saved tensors that are in force around the check, ones that keep no graph.

    An operation that saves its output, tanh for one, holds what a hook makes of it. `save_on_cpu` and others give back
    the very tensor, which holds the operation: what they keep is none of the function's doing.
    """
    return nullcontext() if saved_tensor_hooks() is None else saved_tensors_hooks(_without_graph, lambda saved: saved)


def _without_graph(saved: torch.Tensor) -> torch.Tensor:
    return saved if saved.is_leaf else saved.detach()


class _WithoutCollector:
    """The garbage collector sleeps inside the block."""

    def __enter__(self) -> None:
        self._enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *exception: object) -> None:
        if self._enabled:
            gc.enable()
