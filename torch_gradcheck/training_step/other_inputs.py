"""Whether the step's own forward saw the inputs of the batch that the check was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_gradcheck.objective.loss import Loss, MeanLoss, ModuleLoss
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.torch_internals.autograd import in_backward
from torch_gradcheck.training_step.forward_state import SeenForward
from torch_gradcheck.training_step.step import TrainingStep

CLOSE = 1e-2
"""Inputs that differ by less than 1 % are the same ones, in another precision."""


def other_inputs(objective: Objective, forwards: Sequence[SeenForward]) -> str:
    """Words on the first input that the step's forwards saw and that is not the batch's; "" where all are alike.

    J is run once more, and what it calls the model with compared with what the loop called it with, so that whatever
    J itself does to the batch counts as the batch's.

    Args:
        objective: J over the batches given to the check, from the step's own random state; its model is lent.
        forwards: those of the step.
    """
    left, found = list(forwards), list[str]()

    def compare(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if left and torch.is_grad_enabled() and not in_backward():
            found.append(_difference(left.pop(0), args, kwargs))

    handles: list[Any] = []
    try:
        handles.append(objective.model.register_forward_pre_hook(compare, with_kwargs=True, prepend=True))
        with torch.enable_grad(), objective.evaluation():
            objective.compute()
    finally:
        for handle in handles:
            handle.remove()
    return next(filter(None, found), "")


def as_seen(losses: Sequence[Loss], step: TrainingStep) -> list[Loss]:
    """The losses of a window with the inputs that the forwards saw in place of the batch's; empty where unknown."""
    if step.forwards is None or len(step.forwards) != len(losses):
        return []
    seen: list[Loss] = []
    for loss, forward in zip(losses, step.forwards, strict=True):
        if not isinstance(loss, ModuleLoss) or bool(forward.args) == bool(forward.kwargs):
            return []
        seen.append(loss.with_inputs(forward.args or forward.kwargs))
    return seen


def seen_loss(step: TrainingStep) -> MeanLoss | None:
    """J over the inputs that the forwards of the window saw, with the targets of its batches; None where unknown."""
    if step.window is None or not (losses := as_seen(step.window.losses, step)):
        return None
    window = step.window
    return MeanLoss(losses, window.divisor, [forward.start for forward in step.forwards or ()], window.weights)


def _difference(forward: SeenForward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    given = dict(tensors_in([args, kwargs]))
    for path, tensor in tensors_in([forward.args, forward.kwargs]):
        other = given.get(path)
        if other is None or not forward.is_unchanged(tensor):
            continue
        if other.shape != tensor.shape:
            return f"shape {_shape(tensor)} where the batch has {_shape(other)}"
        if not _same_numbers(tensor.detach(), other.detach()):
            return f"a tensor of shape {_shape(tensor)} holds other numbers"
    return ""


def _same_numbers(seen: torch.Tensor, given: torch.Tensor) -> bool:
    if seen.is_sparse or seen.is_quantized or seen.is_nested:
        return True  # not looked into
    given = given.to(seen.device, seen.dtype)
    if not (seen.is_floating_point() or seen.is_complex()):
        return torch.equal(seen, given)
    largest = float(seen.abs().nan_to_num(0.0, 0.0, 0.0).max()) if seen.numel() else 0.0
    return torch.allclose(seen, given, rtol=CLOSE, atol=CLOSE * largest / 10, equal_nan=True)


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "()"
