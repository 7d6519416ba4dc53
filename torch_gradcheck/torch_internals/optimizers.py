"""What a gradient scaler has done to the gradients of a step."""

from __future__ import annotations

import torch
from torch.amp.grad_scaler import OptState

from torch_gradcheck.torch_internals.missing import internal


def has_unscaled(scaler: torch.amp.GradScaler) -> bool:
    """Whether the scaler has divided the gradients of an optimizer by the loss scale since its last update."""
    states = internal(scaler, "_per_optimizer_states", "see whether .grad still carries the loss scale")
    return OptState.UNSCALED in [state["stage"] for state in states.values()]
