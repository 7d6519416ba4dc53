"""The gradients that outputs are given: signed, of sizes between ½ and 1½, rounded to the candidate's dtype."""

from __future__ import annotations

import torch

from torch_gradcheck.objective.function_outputs import drawn


class Upstream:
    """v of every output, drawn once, by the first computation that asks: the candidate.

    The reference gets the same rounded numbers, in whatever precision it computes.

    Args:
        seed: same seed, same v, on every device.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rounded: dict[int, torch.Tensor] = {}

    def of(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """v of the output at this position, in new memory, in the shape, dtype and place of this output."""
        if position not in self._rounded:
            v = drawn((self._seed + position) % 2**63, output)
            self._rounded[position] = v.to(output.dtype)
        numbers = self._rounded[position].to(output.dtype)  # on the CPU: no device but this has every dtype
        return numbers.to(output.device, copy=True)
