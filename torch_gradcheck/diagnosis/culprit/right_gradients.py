"""The right gradients of a call's inputs, by aten's formulas for a record of the call: what it hides counts as well.

The record contains what `detach`, `.data` or a custom backward hides from autograd. As for J, this proves nothing by
itself: a formula may be wrong. What is built on it is tried against J.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_gradcheck.diagnosis.culprit.argument_copies import replaced, tensors_of
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner
from torch_gradcheck.engines.traced.gradient import gradient_by_record
from torch_gradcheck.engines.traced.program import compiled

Cotangents = Sequence[torch.Tensor | None]


def right_gradients(runner: CallRunner, call: RecordedCall, cotangents: Cotangents) -> dict[int, torch.Tensor]:
    """The gradient of Σ ⟨cotangent, output⟩ for every differentiable input, by its position; 0 where there is none.

    Args:
        runner: runs calls in the regime that J is evaluated in.
        call: a recorded call.
        cotangents: one for each output; None counts as 0.

    Raises:
        Untraceable: the call cannot be recorded, or the record not be differentiated.
        CannotBeRunAlone: the limit of runs is reached.
    """
    leaves = _leaves(call)
    theirs = iter(leaves)
    arguments = replaced(call.arguments, lambda tensor: next(theirs, tensor))
    asked = [k for k, differentiable in enumerate(call.differentiable) if differentiable and _is_real(leaves[k])]
    unique = list(dict.fromkeys(leaves[k] for k in asked))

    with runner.alone(call):
        found = gradient_by_record(compiled(lambda: _pulled_back(call, arguments, cotangents), unique))
    gradients = dict(zip(unique, found, strict=True))
    return {k: torch.zeros_like(leaf) if (g := gradients[leaf]) is None else g for k in asked for leaf in (leaves[k],)}


def _leaves(call: RecordedCall) -> list[torch.Tensor]:
    """A copy of every tensor in the arguments, one of a tensor given twice; each requires a gradient as that did."""
    copies: dict[int, torch.Tensor] = {}
    for tensor, differentiable in zip(call.inputs, call.differentiable, strict=True):
        copies.setdefault(id(tensor), tensor.clone().requires_grad_(differentiable))
    return [copies[id(tensor)] for tensor in call.inputs]


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float64 and tensor.layout is torch.strided


def right_gradient_of(
    parameter: torch.Tensor, runner: CallRunner, call: RecordedCall, given: RecordedCall
) -> torch.Tensor:
    """The gradient of a parameter that `call` would have for the inputs of `given` and its own upstream gradients.

    Raises:
        Untraceable, CannotBeRunAlone: as above.
        RuntimeError: the outputs have other shapes then.
    """
    clones = iter([each.clone() for each in given.inputs])
    arguments = replaced(given.arguments, lambda tensor: next(clones, tensor))
    with runner.alone(call):
        (found,) = gradient_by_record(compiled(lambda: _pulled_back(call, arguments, call.cotangents), [parameter]))
    return torch.zeros_like(parameter) if found is None else found


def _pulled_back(call: RecordedCall, arguments: tuple[Any, Any], cotangents: Cotangents) -> torch.Tensor:
    """Σ ⟨cotangent, output⟩."""
    outputs = tensors_of(call.run(arguments))
    pairs = [(g, y) for g, y in zip(cotangents, outputs, strict=True) if g is not None]
    return torch.stack([(g * y).sum() for g, y in pairs]).sum()
