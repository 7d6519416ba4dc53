"""The eager engine: for every sample one coordinate is moved in place and J is evaluated once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples


class EagerEngine:
    """Evaluates any J, whatever it is made of.

    A coordinate is put back by assignment of what it held, never by subtraction of the step. The writes go through
    `.data`, which leaves the parameter's version counter alone: neither graphs nor the loan of the model notice them.

    Args:
        value: J(θ) as a float.
        parameters: the tensors that J reads.
    """

    def __init__(self, value: Callable[[], float], parameters: list[torch.Tensor]) -> None:
        self._value = value
        self._parameters = parameters

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        tensor = self._parameters[parameter].data
        flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        taken, values = np.empty(len(steps)), np.empty(len(steps))
        positions = np.unravel_index(coordinates, tuple(flat.shape)) if flat.dim() else ()
        for k, step in enumerate(steps):
            entry = flat[tuple(int(axis[k]) for axis in positions)]  # a 0-dim view of the one coordinate
            taken[k], values[k] = self._moved(entry, float(step))
        return Samples(taken, values)

    def _moved(self, entry: torch.Tensor, step: float) -> tuple[float, float]:
        """The step that θᵢ really took in its precision, (θᵢ + step) − θᵢ, and J there."""
        before = entry.item()
        entry.fill_(before + step)
        try:
            return entry.item() - before, self._value()
        finally:
            entry.fill_(before)
