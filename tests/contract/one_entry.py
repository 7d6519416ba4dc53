"""One entry of the contract of a function, tried alone: without rows, and without the other entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from torch_gradcheck.contract.entries import ENTRIES
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.methods.problem import posed
from torch_gradcheck.objective.function_call import function_call
from torch_gradcheck.objective.function_loss import FunctionLoss, FunctionModule, WrittenArgumentsError
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.request import validated_request


def tried(
    name: str,
    function: Callable[..., Any],
    *inputs: Any,
    hold_detached: bool = False,
    dtype: torch.dtype = torch.float64,
) -> ContractEntry:
    """The entry with this name, of a function with these inputs."""
    model = function if isinstance(function, nn.Module) else FunctionModule()
    request = validated_request(
        model,
        METHOD_NAMES,
        gradients=None,
        method="auto",
        eps=None,
        tolerance=None,
        include=None,
        exclude=None,
        mode="keep",
        dtype=dtype,
        seed=0,
        progress=None,
        perturb=0.0,
        hold_detached=hold_detached,
    )
    loss = FunctionLoss(function_call(function, inputs), request.seed)
    try:
        return _tried(name, model, loss, request)
    except WrittenArgumentsError:
        return _tried(name, model, loss.on_copies(), request)


def _tried(name: str, model: nn.Module, loss: FunctionLoss, request: Any) -> ContractEntry:
    with posed(model, loss, request) as problem:
        _ = problem.objective
        return ENTRIES[name](Trial(problem, loss))


def function(name: str, forward: Any, backward: Any, **members: Any) -> Any:
    """The `apply` of a Function made of these."""
    made: Any = {"forward": forward, "backward": backward, **members}
    statics = {key: staticmethod(value) if callable(value) else value for key, value in made.items()}
    return type(name, (Function,), statics).apply  # type: ignore[attr-defined]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float32, of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
