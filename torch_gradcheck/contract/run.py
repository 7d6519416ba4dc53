"""One run of the function on trial, forward and backward: what it returned, and the gradients that it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from torch_gradcheck.objective.signatures import callable_name, function_applied_by
from torch_gradcheck.torch_internals.autograd import backward_of, function_of, node_of, nodes_from
from torch_gradcheck.torch_internals.code_lines import users_line_of
from torch_gradcheck.torch_internals.custom_ops import name_of_function, written_for

FUNCTIONS_NAMED = 3
"""Of more Functions than these in one graph no line is told: it would not say where to look."""


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        names: of the outputs: `output`, or `output[1]` in a nest.
        outputs: the tensors that the function returned, in order, without their graphs.
        have_graphs: of each output, whether it is differentiable here.
        gradients: of the arguments on trial and then of the parameters; None where the backward left nothing.
    """

    names: Sequence[str]
    outputs: Sequence[torch.Tensor]
    have_graphs: Sequence[bool]
    gradients: Sequence[torch.Tensor | None]


def backwards_in_words(outputs: Sequence[torch.Tensor]) -> str:
    """Where the backwards of the user's start that a backward from these outputs runs; "" for none.

    As " (Square.backward at FILE:LINE)".
    """
    return _in_words([(f"{name_of_function(each)}.backward", backward_of(each)) for each in _functions(outputs)])


def forwards_in_words(function: Any, outputs: Sequence[torch.Tensor]) -> str:
    """Where what the user has written of a forward starts: the function that is called, and the Functions in it.

    As " (swish at FILE:LINE)" or " (Square.forward at FILE:LINE)"; "" for nothing.

    Args:
        function: as it is called: a plain function, an operator, a module, `apply` of a Function.
        outputs: what it has returned.
    """
    own = [] if function_applied_by(function) is not None else [(callable_name(function), written_for(function))]
    if isinstance(function, nn.Module):
        own = [(f"{callable_name(function)}.forward", function.forward)]
    return _in_words([*own, *[(f"{name_of_function(each)}.forward", each.forward) for each in _functions(outputs)]])


def _functions(outputs: Sequence[torch.Tensor]) -> list[type[Function]]:
    functions = dict.fromkeys([function_of(node) for node in nodes_from(map(node_of, outputs))])
    return [each for each in functions if each is not None]


def _in_words(named: Sequence[tuple[str, Any]]) -> str:
    found = [(name, users_line_of(function)) for name, function in named]
    lines = [f"{name} at {line}" for name, line in found if line is not None]
    return f" ({', '.join(lines)})" if 0 < len(lines) <= FUNCTIONS_NAMED else ""
