"""The arguments that a recorded call is given when it is run alone: moved along tangents, or with leaves in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.argument_copies import laid_out_alike, replaced
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.tangents import Tangents


def moved_arguments(call: RecordedCall, tangents: Tangents, step: float) -> tuple[Any, Any]:
    """The arguments with the tensors in them, x, at x + step · ẋ; parameters are as θ has them."""
    moved: dict[torch.Tensor, torch.Tensor] = {}
    position = iter(range(len(tangents)))

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        k = next(position, None)
        if isinstance(tensor, nn.Parameter):
            return tensor  # moves with θ
        if tensor not in moved:
            tangent = tangents[k] if k is not None else None
            new = tensor.clone() if tangent is None else tensor + step * tangent
            asked = k is not None and call.differentiable[k] and torch.is_grad_enabled()
            moved[tensor] = _writable(new.requires_grad_()) if asked else new
        return moved[tensor]

    arguments: tuple[Any, Any] = replaced(call.arguments, replace)
    return arguments


def arguments_with_leaves(call: RecordedCall, leaves: list[torch.Tensor]) -> tuple[Any, Any]:
    """The arguments with new leaves in place of their tensors; appends the leaves to `leaves`, in order."""
    views: dict[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] = {}

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        k = len(leaves)
        known = k < len(call.differentiable)
        if isinstance(tensor, nn.Parameter):
            views[tensor] = tensor, tensor
        if tensor not in views:
            leaf = laid_out_alike(tensor).requires_grad_(known and call.differentiable[k])
            views[tensor] = leaf, _writable(leaf)
        if known:
            leaves.append(views[tensor][0])
        return views[tensor][1]

    arguments: tuple[Any, Any] = replaced(call.arguments, replace)
    return arguments


def _writable(leaf: torch.Tensor) -> torch.Tensor:
    """A copy of the leaf, which the module may write to: autograd forbids writing to a leaf or its views."""
    return laid_out_alike(leaf) if leaf.requires_grad else leaf
