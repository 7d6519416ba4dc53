"""The eager engine: for every sample one coordinate is moved in place and J is evaluated once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.objective.perturbation import MovedCoordinate, coordinate_views


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
        views = coordinate_views(self._parameters[parameter].data, coordinates)
        taken, values = np.empty(len(steps)), np.empty(len(steps))
        for k, (coordinate, step) in enumerate(zip(views, steps.tolist(), strict=True)):
            with MovedCoordinate(coordinate, step) as taken[k]:
                values[k] = self._value()
        return Samples(taken, values)
