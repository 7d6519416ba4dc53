"""Which calls of two runs, or of a forward and a backward, are the same call."""

from __future__ import annotations

import torch

from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall


def paired_with_recomputed(calls: list[RecordedCall]) -> None:
    """Pairs checkpointed calls with their recomputation in the backward, and copies its gradients to them."""
    waiting = [call for call in calls if call.in_backward and call.receives]
    for call in calls:
        if call.in_backward or call.grad_enabled:
            continue
        again = next((other for other in waiting if _same_call(call, other)), None)
        if again is not None:
            waiting.remove(again)
            call.cotangents, call.returned = again.cotangents, again.returned
            call.differentiable, call.grad_enabled = again.differentiable, True


def kind_of(call: RecordedCall) -> tuple[str, bool]:
    """What one call has in common in all runs: the class of its owner. A forward may create modules anew."""
    owner = call.owner if isinstance(call.owner, type) else type(call.owner)
    return owner.__qualname__, call.differentiates is not None


def _same_call(one: RecordedCall, other: RecordedCall) -> bool:
    if kind_of(one) != kind_of(other):
        return False
    return len(one.inputs) == len(other.inputs) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True)
    )
