"""`inputs_kept`: the function leaves its inputs as they were, unless it says that it writes to them.

So it leaves the lists and mappings among them, which it has no way to say it writes to.

A Function says so by `ctx.mark_dirty`, an operator by its schema, and anything else by writing where autograd sees it:
by an in-place operation that is recorded or, on a tensor that requires no gradient, moves its version counter. A
backward has no way to say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from torch_gradcheck.contract.containers import Containers
from torch_gradcheck.contract.kept_tensors import KeptTensors, WriteWatch
from torch_gradcheck.contract.outcome import failed, passed
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.contract.upstream import gradients_under
from torch_gradcheck.objective.function_outputs import outputs_of
from torch_gradcheck.objective.signatures import function_applied_by
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.torch_internals.operations import is_written, schemas_of
from torch_gradcheck.torch_internals.tensors import version_of

NAME = "inputs_kept"


def inputs_kept(trial: Trial) -> ContractEntry:
    """Every tensor and container among the arguments, compared with what it held before forward and backward."""
    written = _run(trial, KeptTensors(), KeptTensors())
    for name, words in written.forward.items():
        watch = WriteWatch(kept := KeptTensors(), name, _run.__code__)
        _run(trial, kept, KeptTensors(), watch)
        if not watch.by_choice_of_torch:
            where = watch.where or trial.forwards
            return failed(NAME, f"the forward writes to {name} {_how(trial.call.function)}: it {words}{where}")
    if written.containers:
        return failed(NAME, f"the forward {written.containers}, which is the caller's{trial.forwards}")
    for name, words in written.backward.items():
        watch = WriteWatch(kept := KeptTensors(), name, _run.__code__)
        _run(trial, KeptTensors(), kept, watch)
        return failed(NAME, f"the backward writes to {name}: it {words}{watch.where or trial.backwards}")
    return passed(NAME)


@dataclass(frozen=True)
class _Written:
    """What a run has written to: name of the argument → the words "is 2 at [0], should be 1".

    Attributes:
        forward: what the forward has written to without saying so.
        backward: what the backward has.
        containers: what the forward has changed in lists and mappings among the arguments, see `Containers.change`.
    """

    forward: Mapping[str, str]
    backward: Mapping[str, str]
    containers: str


@dataclass(frozen=True)
class _Argument:
    """A tensor among the arguments, and what autograd knew of it before the call."""

    name: str
    tensor: torch.Tensor
    node: Any
    version: int


def _run(trial: Trial, forward: KeptTensors, backward: KeptTensors, watch: WriteWatch | None = None) -> _Written:
    """Forward and backward.

    Args:
        trial: what is run.
        forward: takes down the arguments before the forward.
        backward: takes them down before the backward.
        watch: looks on.
    """
    with torch.enable_grad(), trial.regime():
        leaves, call = trial.fresh(), trial.handing_on
        given = [leaf.clone() for leaf in leaves] if trial.writes else leaves
        arguments = [_Argument(name, each, each.grad_fn, version_of(each)) for name, each in call.arguments(given)]
        _take_down(arguments, forward)
        with nullcontext() if watch is None else watch:
            args, kwargs = call.given(given)
            containers = Containers(call.named(args, kwargs))
            outputs = [y for _, y in outputs_of(call.called_on(args, kwargs))]
            changed = containers.change()
            declared = {each.name for each in arguments if _is_declared(call.function, each, outputs)}
            undeclared = {name: words for name, words in forward.written().items() if name not in declared}
            _take_down(arguments, backward)
            gradients_under(outputs, trial.cotangents(outputs), [*leaves, *objects_of(trial.parameters)])
            return _Written(undeclared, backward.written(), changed)


def _take_down(arguments: Sequence[_Argument], kept: KeptTensors) -> None:
    for argument in arguments:
        kept.keep(argument.name, argument.tensor)


def _is_declared(function: Any, argument: _Argument, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether the function says that it writes to this argument, and has been called."""
    tensor = argument.tensor
    if tensor.grad_fn is not argument.node:
        return True
    if function_applied_by(function) is not None:
        return any(output is tensor for output in outputs)  # of what is not marked dirty, it returns another object
    schemas = schemas_of(function)
    if schemas:
        own_name = argument.name.partition("[")[0]
        return any(each.name == own_name and is_written(each) for schema in schemas for each in schema)
    return not tensor.requires_grad and version_of(tensor) > argument.version


def _how(function: Any) -> str:
    """Where the function should say that it writes to an argument."""
    if function_applied_by(function) is not None:
        return "and does not mark it dirty (ctx.mark_dirty)"
    return "and its schema does not say so (mutates_args)" if schemas_of(function) else "where autograd does not see it"
