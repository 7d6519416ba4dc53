"""Finds where code between calls loses a gradient: at a call whose output, or input, has no graph, and J hangs on it.

A metric that is only logged has no graph either. So J is evaluated with that call moved as it moves with θ, and
nothing else: where J does not move, nothing is lost there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.attribution import Lost, LostPath
from torch_gradcheck.diagnosis.culprit.changed_call import ChangedCall
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import ERROR_BARS_OFF, OWN_MISTAKE, CallRunner
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate
from torch_gradcheck.diagnosis.culprit.unwritten_memory import ZeroedMemory
from torch_gradcheck.methods.problem import Problem

MOST_TRIED = 6
"""So many calls, at most, are tried, one evaluation of J each."""

STEP = 1e-4
"""How far the coordinate is moved to see what J does, relative to max(1, |θ_i|): a tenth of the error is to be seen."""


def lost_path(
    problem: Problem,
    runner: CallRunner,
    call: RecordedCall | None,
    tangents: Mapping[RecordedCall, Tangents],
    wrong: WrongCoordinate,
) -> LostPath | None:
    """A call made by `call` whose output, or input, J depends on without a graph; None where none is seen.

    Args:
        problem: J and θ, the model lent.
        runner: runs calls alone.
        call: a module with a mistake of its own; None is the loss function or closure.
        tangents: of the inputs of every call, along the coordinate.
        wrong: the coordinate.
    """
    children = [child for child in tangents if child.parent is call and _moves(child, tangents[child], wrong)]
    here = call is None or call.grad_enabled
    candidates = [*_without_gradient(children, here), *_with_detached_input(children, tangents)]
    for path in candidates[:MOST_TRIED]:
        try:
            if _carries(problem, runner, path, tangents[path.call], wrong):
                return path
        except Exception:  # whatever J or the call raises when it is moved, nothing is said of it
            continue
    return None


def _without_gradient(children: Sequence[RecordedCall], here: bool) -> list[LostPath]:
    """Calls under no_grad, and those whose outputs no gradient arrives at."""
    under_no_grad = [LostPath(child, Lost.UNDER_NO_GRAD) for child in children if here and not child.grad_enabled]
    silent = [child for child in children if child.cotangents and not child.receives and child.grad_enabled]
    return under_no_grad + [LostPath(child, Lost.BEHIND) for child in silent]


def _with_detached_input(children: Sequence[RecordedCall], tangents: Mapping[RecordedCall, Tangents]) -> list[LostPath]:
    return [
        LostPath(child, Lost.BEFORE)
        for child in children
        if child.grad_enabled and any(each is not None for each in _detached(child, tangents[child]))
    ]


def _detached(call: RecordedCall, tangents: Tangents) -> Tangents:
    """The tangents of the inputs that move though they require no gradient."""
    return [None if asked else tangent for tangent, asked in zip(tangents, call.differentiable, strict=True)]


def _moves(call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate) -> bool:
    return any(tangent is not None for tangent in tangents) or bool(
        isinstance(call.owner, nn.Module)
        and any(parameter is wrong.entry.parameter for parameter in call.owner.parameters())
    )


def _carries(problem: Problem, runner: CallRunner, path: LostPath, tangents: Tangents, wrong: WrongCoordinate) -> bool:
    """Whether a large share of the error is what J does when this alone moves."""
    step = STEP * wrong.unit
    number = path.call.number
    if path.how is Lost.BEFORE:
        detached = _detached(path.call, tangents)
        changed = ChangedCall(problem.objective, number, of_inputs=lambda k, x: _moved(x, detached[k], step))
    else:
        step, outputs = runner.outputs(path.call, tangents, wrong, step)
        changed = ChangedCall(problem.objective, number, of_outputs=lambda k, y: _at(y, outputs[k]))
    off = _value(problem, changed) - problem.objective.loss
    return abs(off) > max(OWN_MISTAKE * abs(wrong.error * step), ERROR_BARS_OFF * problem.noise.sigma)


def _moved(tensor: torch.Tensor, tangent: torch.Tensor | None, step: float) -> torch.Tensor:
    return tensor if tangent is None else tensor + step * tangent


def _at(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The value, with the graph that the tensor has: J may ask for a derivative."""
    return tensor + (value - tensor.detach()) if tensor.requires_grad else value


def _value(problem: Problem, changed: ChangedCall) -> float:
    objective = problem.objective
    with torch.enable_grad(), objective.evaluation(), changed, ZeroedMemory():
        return float(objective.compute().detach())
