"""What a gradient scaler does to gradients and to its scale, in any precision: torch's kernels take float32 alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.torch_internals.operations import SCALE_UPDATES, UNSCALINGS


def in_any_precision(func: Any) -> Callable[..., Any] | None:
    """The function that computes what this operation of a gradient scaler does; None of any other operation."""
    if func in UNSCALINGS:
        return unscale
    return update_scale if func in SCALE_UPDATES else None


def unscale(gradients: Sequence[Tensor], found_inf: Tensor, inv_scale: Tensor) -> None:
    """Multiplies gradients by the inverse of the scale, in place; `found_inf` becomes 1 where one is not finite."""
    for gradient in gradients:
        found_inf.copy_(torch.maximum(found_inf, (~torch.isfinite(gradient).all()).to(found_inf)))
        gradient.mul_(inv_scale)


def update_scale(
    scale: Tensor,
    growth_tracker: Tensor,
    found_inf: Tensor,
    scale_growth_factor: float,
    scale_backoff_factor: float,
    growth_interval: int,
) -> Tensor:
    """Lowers the scale after a step that was skipped, and raises it after `growth_interval` that were not, in place."""
    skipped, steps = found_inf > 0, growth_tracker + 1
    grown = scale * scale_growth_factor
    is_due = steps == growth_interval
    raised = torch.where(is_due & torch.isfinite(grown), grown, scale)
    scale.copy_(torch.where(skipped, scale * scale_backoff_factor, raised))
    growth_tracker.copy_(torch.where(skipped | is_due, torch.zeros_like(steps), steps))
    return scale
