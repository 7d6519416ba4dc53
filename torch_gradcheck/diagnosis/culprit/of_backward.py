"""Judges the calls that the backward of a Function makes, each by itself: an adjoint calls the field of its ODE anew.

What such a call contributes to E cannot be told: the Function does what it likes with its gradients. But a call whose
gradient for x is wrong along any direction is wrong. The Function then may be right, and is not blamed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.diagnosis.culprit.recorded_call import Owner, RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate

TRIED = 2
"""How many calls of one module are tried: those that are given the largest gradients."""


def wrong_call_of(
    function: RecordedCall, calls: Sequence[RecordedCall], runner: CallRunner, wrong: WrongCoordinate
) -> RecordedCall | None:
    """The innermost wrong call among those that the backward of a Function made; None where none is seen to be wrong.

    Args:
        function: the call of the Function.
        calls: those that backwards have made.
        runner: runs calls alone.
        wrong: the coordinate that is followed.
    """
    outermost = [call for call in calls if call.made_by is function and call.receives and not _is_inside(call)]
    owners: dict[Owner, list[RecordedCall]] = {}
    for call in sorted(outermost, key=_size, reverse=True):
        owners.setdefault(call.owner, []).append(call)
    tried = [call for same in owners.values() for call in same[:TRIED]]
    found = _first_wrong(tried, runner, wrong)
    return None if found is None else _innermost(found, runner, wrong)


def _is_inside(call: RecordedCall) -> bool:
    """Whether a call around this one receives a gradient. A part of a solver, under no_grad, does not."""
    parent = call.parent
    return parent is not None and (parent.receives or _is_inside(parent))


def _innermost(call: RecordedCall, runner: CallRunner, wrong: WrongCoordinate) -> RecordedCall:
    inside = _first_wrong(call.children, runner, wrong)
    return call if inside is None else _innermost(inside, runner, wrong)


def _first_wrong(calls: Sequence[RecordedCall], runner: CallRunner, wrong: WrongCoordinate) -> RecordedCall | None:
    for call in calls:
        if _is_wrong(call, runner, wrong):
            return call
    return None


def _is_wrong(call: RecordedCall, runner: CallRunner, wrong: WrongCoordinate) -> bool:
    try:
        return runner.is_wrong_along(call, _random_tangents(call), wrong)
    except CannotBeRunAlone:
        return False


def _random_tangents(call: RecordedCall) -> Tangents:
    generator = torch.Generator("cpu").manual_seed(0)
    return [_random(tensor, generator) if asked else None for tensor, asked in _inputs(call)]


def _inputs(call: RecordedCall) -> list[tuple[torch.Tensor, bool]]:
    return list(zip(call.inputs, call.differentiable, strict=True))


def _random(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)


def _size(call: RecordedCall) -> float:
    return sum(float(gradient.abs().square().sum()) for gradient in call.cotangents if gradient is not None)
