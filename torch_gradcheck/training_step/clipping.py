"""Gradients clipped as the training loop says it clips them: in value, then in norm."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.training_step.step import TrainingStep

CLIP_EPS = 1e-6
"""Added by torch.nn.utils.clip_grad_norm_ to the norm it divides by."""

AT_LIMIT = 1e-2
"""The relative distance within which a norm is at its limit, whatever precision `.grad` is rounded to."""


class Clipping:
    """The limits that the loop has put on `.grad`.

    Args:
        step: what is known of the training step.
        whole: all that is clipped together is checked, so that its norm is known.
        inputs: positions of tensors that the loop does not clip: no optimizer steps them, or not yet.
        held: the norm of all that is clipped together, as it is now; None where that is not known.
        groups: positions of tensors that are clipped together, of several optimizers; empty: all of them are.
    """

    def __init__(
        self,
        step: TrainingStep,
        whole: bool,
        inputs: Collection[int] = (),
        held: float | None = None,
        groups: Sequence[frozenset[int]] = (),
    ) -> None:
        self._step, self._whole, self._inputs = step, whole, frozenset(inputs)
        self._held, self._groups = held, groups

    def of_right(
        self, right: Mapping[int, Floats], given: Mapping[int, Floats]
    ) -> tuple[dict[int, Floats], dict[int, float]]:
        """The right gradients clipped, by position, and the fraction of each that clipping the norm leaves.

        Args:
            right: the right gradients.
            given: what `.grad` holds.
        """
        finite = {position: _finite(values) for position, values in right.items()}
        limit = self._step.clip_value
        if limit is not None:  # before the norm, where the loop limits both
            finite |= {position: np.clip(finite[position], -limit, limit) for position in finite.keys() - self._inputs}
        fractions = self.fractions(finite, given)
        return {position: _times(values, fractions[position]) for position, values in finite.items()}, fractions

    def fractions(self, gradients: Mapping[int, Floats], given: Mapping[int, Floats]) -> dict[int, float]:
        """The fraction that clipping leaves of each of these gradients: 1 where there is no limit, or within it."""
        found = dict.fromkeys(gradients, 1.0)
        if self._step.clip_norm is None:
            return found
        clipped = gradients.keys() - self._inputs
        for group in [clipped & group for group in self._groups] or [clipped]:
            found |= dict.fromkeys(group, self._fraction(gradients, sorted(group), given, self._step.clip_norm))
        return found

    def _fraction(
        self, gradients: Mapping[int, Floats], group: Sequence[int], given: Mapping[int, Floats], limit: float
    ) -> float:
        """The fraction that is left of a group."""
        squares = sum(_square(gradients[at]) for at in group)
        largest = min(1.0, limit / (math.sqrt(squares) + CLIP_EPS))  # the norm of some is no larger than that of all
        if self._whole:
            return largest
        if not self._may_be_clipped(limit):
            return 1.0
        # The norm is one over all parameters, of which only some are known: the factor itself has to tell.
        along = sum(float(np.dot(np.nan_to_num(given[at]), gradients[at])) for at in group)
        return float(np.clip(along / max(squares, 1e-300), 0.0, largest)) or 1.0  # nothing is no clipped gradient

    def _may_be_clipped(self, limit: float) -> bool:
        """Whether the norm of all is at the limit, where clipping leaves it, or is not known."""
        if self._held is None or not math.isfinite(self._held) or self._step.clip_value is not None:
            return True
        return self._held >= (1 - AT_LIMIT) * limit * limit / (limit + CLIP_EPS)


@np.errstate(over="ignore")
def _square(values: Floats) -> float:
    return float(np.dot(values, values))


def _finite(values: Floats) -> Floats:
    """`np.nan_to_num`, but no copy of an array that is finite."""
    return values if np.isfinite(values).all() else np.nan_to_num(values)


def _times(values: Floats, fraction: float) -> Floats:
    return values if fraction == 1 else values * fraction
