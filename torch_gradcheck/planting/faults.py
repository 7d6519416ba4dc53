"""The faults: what a wrong backward makes of a gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch

Change = Callable[[torch.Tensor], torch.Tensor]
"""Makes a wrong gradient of a right one, of any shape."""

SCALE = 1.01
"""The factor of a gradient that is scaled: small, so that what hides it hides larger ones less."""


def scaled(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient, one per cent too large."""
    return gradient * SCALE


def flipped(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient with the wrong sign."""
    return -gradient


def zeroed(gradient: torch.Tensor) -> torch.Tensor:
    """Zeros."""
    return gradient * 0


def without(entry: tuple[int, ...]) -> Change:
    """Sets one entry to 0."""

    def lost(gradient: torch.Tensor) -> torch.Tensor:
        changed = gradient.clone()
        changed[entry] = 0
        return changed

    return lost


WHOLE: dict[str, Change] = {f"scaled by {SCALE:g}": scaled, "flipped": flipped, "zeroed": zeroed}
"""The faults of a whole gradient, by what is said of them."""
