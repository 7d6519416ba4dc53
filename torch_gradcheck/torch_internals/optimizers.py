"""What a gradient scaler has done to the gradients of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from torch_gradcheck.torch_internals.missing import internal


def has_unscaled(scaler: torch.amp.GradScaler) -> bool:
    """Whether the scaler has divided the gradients of an optimizer by the loss scale since its last update."""
    return OptState.UNSCALED in [state["stage"] for state in _states(scaler)]


def skips_infinite(scaler: torch.amp.GradScaler) -> bool:
    """Whether the scaler skips this step where gradients are not finite: it has found that, or has still to look."""
    looked = [state for state in _states(scaler) if state["stage"] is not OptState.READY]
    found = [float(number) for state in looked for number in state["found_inf_per_device"].values()]
    return bool(scaler.is_enabled()) and (not looked or any(found))


def _states(scaler: torch.amp.GradScaler) -> list[dict[str, Any]]:
    """What the scaler knows of each optimizer since its last update."""
    if not getattr(scaler, "is_enabled", lambda: True)():
        return []  # it has no states
    states = internal(scaler, "_per_optimizer_states", "see whether .grad still carries the loss scale")
    return list(states.values())
