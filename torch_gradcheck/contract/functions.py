"""The Functions of the user's in a graph, those behind operators of torch.library among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.objective.sparse_arguments import SparseFromValues
from torch_gradcheck.torch_internals.autograd import function_of, node_of, nodes_from
from torch_gradcheck.torch_internals.custom_ops import users_function


def functions_behind(outputs: Sequence[torch.Tensor]) -> list[tuple[type[Function], Any]]:
    """Each with its node in the graph."""
    nodes = [(function_of(node), node) for node in nodes_from(map(node_of, outputs))]
    named = [(users_function(function), node) for function, node in nodes if function is not None]
    return [(function, node) for function, node in named if function not in (None, SparseFromValues)]


def functions_of(trial: Trial) -> list[type[Function]]:
    """Those in the graph of the function on trial, each once."""
    with torch.enable_grad(), trial.regime():
        return list(dict.fromkeys([function for function, _ in functions_behind(trial.outputs(trial.arguments))]))
