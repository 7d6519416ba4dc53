"""The state that a GradScaler keeps about each optimizer."""

from __future__ import annotations

from torch.amp.grad_scaler import GradScaler, OptState


def has_unscaled(scaler: GradScaler) -> bool:
    """Whether the gradients of some optimizer have been divided by the scale since the last `update`."""
    return any(state["stage"] is OptState.UNSCALED for state in scaler._per_optimizer_states.values())
