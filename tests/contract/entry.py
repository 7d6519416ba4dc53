"""One entry of the contract of a function, tried alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_gradcheck.check import METHOD_NAMES
from torch_gradcheck.contract.entries import entry_of
from torch_gradcheck.contract.problem_trial import ProblemTrial
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.objective.function_call import function_call, module_of
from torch_gradcheck.objective.function_loss import FunctionLoss, FunctionModule, WrittenArgumentsError
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.request import validated_request


def on_trial(
    trying: Callable[[ProblemTrial], Any],
    function: Callable[..., Any],
    inputs: Sequence[Any] | Mapping[str, Any],
    dtype: torch.dtype = torch.float64,
    hold_detached: bool = False,
) -> Any:
    """What `trying` finds of a function that is lent as `check_function` lends it, without a check of its gradient."""
    model, loss = module_of(function) or FunctionModule(), FunctionLoss(function_call(function, inputs), seed=0)
    try:
        return _lent(trying, model, loss, dtype, hold_detached)
    except WrittenArgumentsError:
        return _lent(trying, model, loss.on_copies(), dtype, hold_detached)


def entry(
    name: str, function: Callable[..., Any], inputs: Sequence[Any] | Mapping[str, Any], **options: Any
) -> ContractEntry:
    """One entry of the contract; the options are those of `on_trial`."""
    found = on_trial(lambda trial: entry_of(name, trial), function, inputs, **options)
    assert isinstance(found, ContractEntry)
    return found


def _lent(
    trying: Callable[[ProblemTrial], Any], model: nn.Module, loss: FunctionLoss, dtype: torch.dtype, hold_detached: bool
) -> Any:
    request = validated_request(
        model, METHOD_NAMES, mode="keep", dtype=dtype, progress=False, hold_detached=hold_detached
    )
    with posed(model, loss, request) as problem:
        return trying(ProblemTrial(loss, problem))
