"""What every engine offers: values of J with one coordinate of θ moved."""

from __future__ import annotations

from typing import Protocol

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples

__all__ = ["Engine", "Floats", "Indices", "Samples"]


class Engine(Protocol):
    """Evaluates J with one coordinate moved, for many coordinates of one parameter at a time."""

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """J(θ + steps[k]·e_coordinates[k]) for every k, leaving θ as it was.

        Args:
            parameter: position of the parameter in θ.
            coordinates: shape (K,), flat indices in C order of the parameter; of its (real, imaginary) pairs when
                it is complex.
            steps: shape (K,), how far to move, signed.
        """
        ...
