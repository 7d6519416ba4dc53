"""What every engine offers: values of J with one coordinate of θ perturbed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples

__all__ = ["Engine", "Floats", "Indices", "Samples", "SubstituteEngine"]


class Engine(Protocol):
    """Evaluates J with one coordinate perturbed, for many coordinates of one parameter at a time."""

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """J(θ + steps[k]·e_coordinates[k]) for every k; θ is afterwards what it was.

        Args:
            parameter: position of the parameter in θ.
            coordinates: shape (K,), flat indices in C order of the parameter; of its (real, imaginary) pairs when
                it is complex.
            steps: shape (K,), signed distances, in the unit of θ.
        """
        ...


class SubstituteEngine(ABC):
    """Evaluates something else in the place of J, a record of it for example.

    Its samples of a parameter are used only after `sample_compared` has found that they agree with J.

    Attributes:
        by_eager: the number of values that it took from J itself, where what it evaluates cannot stand for J.
    """

    by_eager = 0

    @abstractmethod
    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`.

        Raises:
            Untraceable: this engine cannot evaluate J as a function of this parameter.
        """

    @abstractmethod
    def sample_compared(
        self, parameter: int, coordinates: Indices, steps: Floats, reference: Engine, noise: float
    ) -> Samples:
        """The same as `sample`, after a comparison with `reference` at a few coordinates.

        Args:
            parameter: position of the parameter in θ.
            coordinates: as in `sample`.
            steps: as in `sample`.
            reference: the engine to believe.
            noise: what two right ways to evaluate J may differ by, in the unit of J.

        Raises:
            Untraceable: this engine cannot evaluate J as a function of this parameter, or its values are wrong.
        """

    def gradients(self) -> list[Tensor | None] | None:
        """The gradient of what this engine evaluates, by parameter, None where it depends on none; None without one.

        Raises:
            Untraceable: what this engine evaluates cannot be differentiated.
        """
        return None

    def value(self) -> float | None:
        """What it evaluates in the place of J, at what the parameters hold now; None where it knows θ only."""
        return None

    def seconds_each(self, parameter: int) -> float | None:  # noqa: ARG002 - for those who override it
        """An estimate of the seconds that one sample of this parameter takes; None where there is none."""
        return None
