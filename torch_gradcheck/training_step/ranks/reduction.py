"""How far a sum over the ranks in a coarse precision may move a right gradient, in whatever order they are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.training_step.ranks.window import WindowOfRanks

BESIDES_SUMS = 3
"""What is rounded besides partial sums: the cast, a division before the sum, and one after it."""


class Reduction:
    """The gradients of the ranks, rounded to a dtype and averaged in it.

    Rounding is relative to what is added, not to the sum: where the gradients of the ranks cancel, it is all that is
    left. An operation rounds by half a machine epsilon u of its result, or by half of the smallest subnormal number; n
    numbers added in any order are off by (n - 1) u times the sum of their sizes at most (Jeannerod and Rump, Improved
    error bounds for inner products in floating-point arithmetic, 2013).

    Args:
        window: the batches of all ranks.
        parts: the gradient of each batch in float64, by position in θ; those of some may be unknown.
        dtype: what they are summed in.
        loss_scale: the factor that they carry meanwhile.
    """

    def __init__(
        self,
        window: WindowOfRanks,
        parts: Sequence[Mapping[int, Floats]],
        dtype: torch.dtype,
        loss_scale: float = 1.0,
    ) -> None:
        self._shares, self._parts = window.shares, parts
        about, of_a_rank = torch.finfo(dtype), int(np.max(np.bincount(window.ranks)))
        unit, smallest = about.eps / 2, about.eps * about.smallest_normal
        additions = window.world - 1 + of_a_rank - 1  # micro-batches are added up in the dtype, before or after
        self._relative = (1 + unit) ** BESIDES_SUMS * (1 + additions * unit) - 1
        self._absolute = len(window.losses) * BESIDES_SUMS * smallest / 2 / loss_scale

    def error(self, position: int) -> Floats:
        """How far it may move each entry of one parameter's gradient; infinite where the ranks' own are not known."""
        if not self._parts or not all(position in part for part in self._parts):
            return np.array(np.inf)
        added = sum(abs(share) * np.abs(part[position]) for share, part in zip(self._shares, self._parts, strict=True))
        return np.asarray(self._relative * added + self._absolute)
