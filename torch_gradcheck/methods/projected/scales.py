"""How far each tensor moves in a direction: so that every tensor's error counts the same, however small the tensor."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Floats

CAP = 30.0
"""How many times further than the typical tensor, measured by its own size, one may move."""

FURTHEST = 1e4
"""How many times further than the tensor that moves least."""


def scales(lengths: Floats, sizes: Floats) -> Floats:
    """What the random components of each tensor are multiplied by.

    1/‖g‖, so that a step t along a direction changes J by about t for each tensor; less where that would move the
    tensor much further than the others are moved: a gradient of zero must not be looked for beyond the horizon.

    Args:
        lengths: shape (T,), ‖g‖ of each tensor.
        sizes: shape (T,), the root mean square of each tensor's entries, 1 where all are 0.
    """
    with np.errstate(divide="ignore"):
        relative = 1 / (lengths * sizes)
    alive = relative[np.isfinite(relative)]
    if not len(alive):
        return sizes
    furthest = min(CAP * float(np.median(alive)), FURTHEST * float(alive.min()))
    return np.asarray(np.minimum(relative, furthest) * sizes)


def capped(scale: Floats, lengths: Floats) -> Floats:
    """By what factor each tensor moves less than its gradient's length asks for; infinite for a gradient of zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / (lengths * scale))
