"""How far a sum over the ranks in a coarse precision may move a right gradient: the sum itself, imitated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.training_step.error_bars import MARGIN, Bars, furthest
from torch_gradcheck.training_step.ranks.window import WindowOfRanks


class Reduction:
    """The gradients of the ranks, rounded to a dtype and averaged in it.

    Args:
        window: the batches of all ranks.
        parts: the gradient of each batch in float64, by position in θ.
        dtype: what they are summed in.
    """

    def __init__(self, window: WindowOfRanks, parts: Sequence[Mapping[int, Floats]], dtype: torch.dtype) -> None:
        self._window, self._parts, self._dtype = window, parts, dtype

    def bars(self, position: int) -> Bars:
        """How far it may move one parameter's gradient."""
        shares = self._window.shares
        exact = np.asarray(sum(share * part[position] for share, part in zip(shares, self._parts, strict=True)))
        return furthest(self._runs(position), exact, MARGIN)

    def _runs(self, position: int) -> list[Floats]:
        """The mean as it comes out: the ranks summed from the first on, and from the last."""
        world, shares = self._window.world, self._window.shares
        of_rank = [np.zeros_like(self._parts[0][position]) for _ in range(world)]
        for rank, share, part in zip(self._window.ranks, shares, self._parts, strict=True):
            of_rank[rank] += world * share * part[position]
        rounded = [torch.from_numpy(gradient).to(self._dtype) / world for gradient in of_rank]
        return [_summed(rounded), _summed(rounded[::-1])]


def _summed(gradients: Sequence[torch.Tensor]) -> Floats:
    total = torch.zeros_like(gradients[0])
    for gradient in gradients:
        total = total + gradient
    return np.asarray(total.double().numpy())
