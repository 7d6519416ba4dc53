"""The gradient on trial of one parameter, flat in float64, whatever its source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.objective.theta import ThetaEntry


@dataclass(frozen=True)
class AnalyticGradient:
    """The gradient on trial of one parameter.

    Attributes:
        values: shape (coordinates,), float64; zeros where there is none.
        reached: False when the backward never reached the parameter (None instead of a tensor).
        epsilon: machine epsilon of the precision it was given in, 1.2e-7 for float32; its own rounding is no mistake.
        accumulated: a backward that J ran itself has left it in `.grad`.
        error_bar: how far an entry may be off because two runs of the backward differ by rounding; infinite where they
            differ by more, so that nothing can be said of the gradient.
    """

    values: Floats
    reached: bool
    epsilon: float
    accumulated: bool = False
    error_bar: float = 0.0


def analytic_gradient(entry: ThetaEntry, gradient: torch.Tensor | None, eps: float) -> AnalyticGradient:
    """The gradient on trial from a tensor of the parameter's shape, or from None where the backward gave none."""
    if gradient is None:
        return AnalyticGradient(np.zeros(entry.coordinates), reached=False, epsilon=eps)
    return AnalyticGradient(_flat(entry, gradient), reached=True, epsilon=eps)


def undefined_gradient(entry: ThetaEntry) -> AnalyticGradient:
    """The gradient of a parameter where J is not defined: NaN in every coordinate."""
    return AnalyticGradient(np.full(entry.coordinates, np.nan), reached=True, epsilon=0.0)


def _flat(entry: ThetaEntry, gradient: torch.Tensor) -> Floats:
    """C-ordered float64 values; a complex gradient g = ∂J/∂Re + i·∂J/∂Im as (real, imaginary) pairs."""
    given = gradient.detach().to("cpu")  # before anything else: not every device has float64
    dense = given.to_dense() if given.layout is not torch.strided else given
    if entry.is_complex:
        dense = real_view(dense.to(torch.complex128).resolve_conj().contiguous())
    numbers = dense.to(torch.float64, copy=True)  # an array on its memory has torch refuse to let that go
    return np.asarray(numbers.numpy(force=True), dtype=np.float64).ravel()
