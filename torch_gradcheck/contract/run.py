"""One run of the function on trial, forward and backward: what it returned, and the gradients that it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_gradcheck.torch_internals.autograd import backward_of, function_of, node_of, nodes_from
from torch_gradcheck.torch_internals.code_lines import users_line_of
from torch_gradcheck.torch_internals.custom_ops import name_of_function

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
    functions = list({function_of(node): None for node in nodes_from(map(node_of, outputs))})
    found = [(each, users_line_of(backward_of(each))) for each in functions if each is not None]
    lines = [f"{name_of_function(function)}.backward at {line}" for function, line in found if line is not None]
    return f" ({', '.join(lines)})" if 0 < len(lines) <= FUNCTIONS_NAMED else ""
