"""A candidate under a larger upstream gradient: the error of a wrong formula grows with it, that of rounding changes.

A backward is linear in the gradient that it is given. So is a mistake in its formula: 1.375 times the gradient makes
1.375 times the error, entry by entry. Rounding is not: other numbers are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from torch_gradcheck.against_reference.judging.compared import compared
from torch_gradcheck.against_reference.pair import Pair
from torch_gradcheck.against_reference.runs.computation import Computation, Forward, FunctionComputation
from torch_gradcheck.against_reference.runs.run import Run
from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.reporting.facts import Role

SCALE = 1.375
"""The factor on the upstream gradient: exact in every dtype, and no power of two, by which floating point is scaled
without rounding."""

ALIKE = 0.8
"""Errors are those of a formula where they correlate by more, and of rounding else: a part of that may be of factors
that the gradient has nothing to do with."""

AS_LARGE = 3.0
"""Rounding under another gradient is at most 3 times as large; else the backward is not linear in it."""


def rescaled_gradients(pair: Pair, exact: Run) -> list[Floats]:
    """The candidate's gradients under larger gradients of its outputs, in the order of the rows.

    Args:
        pair: whose candidate is run anew.
        exact: of the reference, for the tensors that are compared.
    """
    found = replace(pair, candidate=Rescaled(pair.candidate)).candidate_runs(1)
    return [each.candidate[0] for each in compared(found, exact, []) if each.entry.role is not Role.OUTPUT]


@dataclass(frozen=True)
class Rescaled:
    """A computation under `SCALE` times the gradients that its outputs are given.

    Attributes:
        computation: as it is.
    """

    computation: Computation

    @property
    def model(self) -> nn.Module:
        """See `Computation`."""
        return self.computation.model

    @property
    def loss(self) -> Loss:
        """See `Computation`."""
        return self.computation.loss

    @property
    def notes(self) -> Sequence[str]:
        """See `Computation`."""
        return self.computation.notes

    def at(self, dtype: torch.dtype | None) -> Callable[[], Forward]:
        """See `Computation`."""
        plain = self.computation.at(dtype)

        def forward() -> Forward:
            outputs, losses = plain()
            if not isinstance(self.computation, FunctionComputation):
                return Forward(outputs, [loss * SCALE for loss in losses])
            for output in {id(each): each for _, each in outputs if not each.is_leaf}.values():
                _scale_once(output)
            return Forward(outputs, losses)

        return forward

    def alone(self) -> Mapping[str, Computation]:
        """See `Computation`: it is asked of the computation as it is."""
        return {}


def _scale_once(output: torch.Tensor) -> None:
    """Has the next gradient of an output scaled; leaves nothing on it, since others may hold it."""

    def scaled(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient * SCALE

    handle = output.register_hook(scaled)


def is_rounding(given: Floats, right: Floats, rescaled: Floats) -> bool:
    """Whether the error of a gradient is that of rounding.

    Args:
        given: what the candidate computed, shape (coordinates,).
        right: of the reference in float64.
        rescaled: the candidate's under `SCALE` times the upstream gradient.
    """
    if not np.all(np.isfinite(rescaled)):
        return False
    off, other = given - right, rescaled / SCALE - right
    sizes = root_mean_square(off), root_mean_square(other)
    if not min(sizes) or max(sizes) > AS_LARGE * min(sizes):
        return False
    return float(np.mean(off * other)) <= ALIKE * sizes[0] * sizes[1]
