"""Gradients clipped as the training loop says it clips them: in value, then in norm."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.training_step.step import TrainingStep

CLIP_EPS = 1e-6
"""Added by torch.nn.utils.clip_grad_norm_ to the norm it divides by."""


class Clipping:
    """The limits that the loop has put on `.grad`.

    Args:
        step: what is known of the training step.
        whole: all parameters of the model are checked, so that their norm is known.
        inputs: positions of tensors that are no parameters: a loop clips what its optimizer steps.
    """

    def __init__(self, step: TrainingStep, whole: bool, inputs: Collection[int] = ()) -> None:
        self._step, self._whole, self._inputs = step, whole, frozenset(inputs)

    def of_right(self, right: Mapping[int, Floats], given: Mapping[int, Floats]) -> tuple[dict[int, Floats], float]:
        """The right gradients clipped, by position, and the fraction that clipping their norm leaves.

        Args:
            right: the right gradients.
            given: what `.grad` holds.
        """
        finite = {position: _finite(values) for position, values in right.items()}
        limit = self._step.clip_value
        if limit is not None:  # before the norm, where the loop limits both
            finite |= {position: np.clip(finite[position], -limit, limit) for position in finite.keys() - self._inputs}
        fraction = self.fraction(finite, given)
        return {position: _times(values, self.of(position, fraction)) for position, values in finite.items()}, fraction

    def of(self, position: int, fraction: float) -> float:
        """The fraction of one gradient that is left where clipping leaves this of the parameters: 1 of an input."""
        return 1.0 if position in self._inputs else fraction

    def fraction(self, gradients: Mapping[int, Floats], given: Mapping[int, Floats]) -> float:
        """The fraction that clipping their norm leaves of these gradients: 1 where there is no limit, or within it."""
        if self._step.clip_norm is None:
            return 1.0
        gradients = {position: values for position, values in gradients.items() if position not in self._inputs}
        squares = sum(float(np.dot(values, values)) for values in gradients.values())
        if self._whole:
            return min(1.0, self._step.clip_norm / (math.sqrt(squares) + CLIP_EPS))
        # The norm is one over all parameters, of which only some are known: the factor itself has to tell.
        along = sum(float(np.dot(np.nan_to_num(given[at]), values)) for at, values in gradients.items())
        largest = min(1.0, self._step.clip_norm / (math.sqrt(squares) + CLIP_EPS))  # the norm of some is no larger
        return float(np.clip(along / max(squares, 1e-300), 0.0, largest))


def _finite(values: Floats) -> Floats:
    """`np.nan_to_num`, but no copy of an array that is finite."""
    return values if np.isfinite(values).all() else np.nan_to_num(values)


def _times(values: Floats, fraction: float) -> Floats:
    return values if fraction == 1 else values * fraction
