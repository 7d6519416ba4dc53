"""The scale of each tensor in a direction, chosen so that a relative error of any tensor changes the slope alike."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Floats

CAP_BY_MEDIAN = 30.0
"""A tensor moves at most this many times as far as the median tensor, each measured by its own size."""

CAP_BY_LEAST = 1e4
"""A tensor moves at most this many times as far as the tensor that moves least, each measured by its own size."""


def scales(lengths: Floats, sizes: Floats) -> Floats:
    """The scale of each tensor, shape (T,): the factor on its random components.

    It is 1/‖g‖, so that a step t changes J by about t through each tensor. It is less where that would move one tensor
    much further than the others, as one with a gradient near zero.

    Example: lengths (1, 0.1) and sizes (1, 1) give the scales (1, 10).

    Args:
        lengths: shape (T,), ‖g‖ of each tensor.
        sizes: shape (T,), the root mean square of each tensor's entries, 1 where all are 0.
    """
    with np.errstate(divide="ignore"):
        relative = 1 / (lengths * sizes)
    finite = relative[np.isfinite(relative)]
    if not len(finite):
        return sizes
    cap = min(CAP_BY_MEDIAN * float(np.median(finite)), CAP_BY_LEAST * float(finite.min()))
    return np.asarray(np.minimum(relative, cap) * sizes)


def capped(scale: Floats, lengths: Floats) -> Floats:
    """The factor 1/(‖g‖·scale) by which the caps shorten each tensor's motion: 1 without, infinite where ‖g‖ = 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / (lengths * scale))
