"""Gradients that a backward returns in memory that the next one writes to: a workspace, kept to save an allocation.

A leaf mostly gets a copy of such a gradient. In a model that calls the function twice, autograd still holds the first
one when the second backward runs. So what the backwards of Functions return is looked at before autograd takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from torch_gradcheck.contract.comparison import difference
from torch_gradcheck.contract.kinks import beside
from torch_gradcheck.contract.outcome import Raised, attempted
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.contract.upstream import gradients_under
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.torch_internals.autograd import (
    current_function_backward,
    function_of,
    node_of,
    nodes_from,
    set_function_backward,
)
from torch_gradcheck.torch_internals.custom_ops import name_of_function, users_function
from torch_gradcheck.torch_internals.tensors import is_wrapper

ELSEWHERE = 0.1
"""The other call has arguments that are moved by up to a twentieth of their size."""

OTHER_GRADIENT = -0.75
"""The gradient that the other call is given, as a share of v."""


def overwritten_gradients(trial: Trial) -> str:
    """Which gradient that a backward has returned the backward of another call changes; "" for none."""
    found = attempted(lambda: _found(trial))
    return "" if isinstance(found, Raised) else found


def _found(trial: Trial) -> str:
    with torch.enable_grad(), trial.regime():
        leaves = trial.fresh()
        others = beside(leaves, seed=0, step=ELSEWHERE)
        outputs = trial.outputs(leaves)
        if not _has_functions(outputs):
            return ""
        other_outputs = trial.outputs(others)
        with _Returned() as returned:
            _backward(trial, outputs, leaves, 1.0)
        held = [each.gradient.clone() for each in returned.gradients]
        if held:
            _backward(trial, other_outputs, others, OTHER_GRADIENT)
        words = [_changed(*pair) for pair in zip(returned.gradients, held, strict=True)]
    return next(filter(None, words), "")


def _has_functions(outputs: Sequence[torch.Tensor]) -> bool:
    return any(function_of(node) is not None for node in nodes_from(map(node_of, outputs)))


def _backward(trial: Trial, outputs: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor], factor: float) -> None:
    cotangents = [v * factor for v in trial.cotangents(outputs)]
    gradients_under(outputs, cotangents, [*leaves, *objects_of(trial.parameters)])


class _Gradient(NamedTuple):
    """A tensor that the backward of a Function has returned, the very object."""

    function: type[torch.autograd.Function]
    gradient: torch.Tensor


class _Returned:
    """Keeps, inside the block, the gradients that the backwards of the user's Functions return."""

    def __init__(self) -> None:
        self.gradients: list[_Gradient] = []

    def __enter__(self) -> _Returned:
        self._run = run = current_function_backward()

        def kept(node: Any, *gradients: Any) -> Any:
            returned = run(node, *gradients)
            function = users_function(function_of(node) or torch.autograd.Function)
            if function is not None:
                every = returned if isinstance(returned, tuple) else (returned,)
                self.gradients += [_Gradient(function, each.detach()) for each in every if _has_memory(each)]
            return returned

        set_function_backward(kept)
        return self

    def __exit__(self, *exception: object) -> None:
        set_function_backward(self._run)


def _has_memory(gradient: Any) -> bool:
    return isinstance(gradient, torch.Tensor) and gradient.layout is torch.strided and not is_wrapper(gradient)


def _changed(returned: _Gradient, held: torch.Tensor) -> str:
    function, now = returned
    found = difference(now, held, 0.0)
    called = f"the backward of {name_of_function(function)}"
    return found and f"the backward of another call changes a gradient that {called} has returned: it {found}"
