"""What a loop may clip together: tensors that are not on trial beside those that are, and those of each optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.torch_internals.optimizers import Scaling, optimizers_of, parameters_of


@dataclass(frozen=True)
class ClippedBesides:
    """The gradients that are not on trial and may have been clipped with those that are.

    Attributes:
        norm: of all of them now, without the loss scale; infinite or NaN where one of them is not finite.
        is_skipped: one is not finite, so that a scaler skips the step.
        there: there is one.
    """

    norm: float = 0.0
    is_skipped: bool = False
    there: bool = False

    @classmethod
    def of(cls, model: nn.Module, theta: Theta, scaling: Scaling) -> ClippedBesides:
        """Those of the model, which is not lent, and what optimizers step besides its parameters."""
        on_trial = {id(entry.parameter) for entry in theta}
        own = list(model.parameters())
        together = dict.fromkeys(
            [*own, *[each for optimizer in optimizers_of(own) for each in parameters_of(optimizer)]]
        )
        others = [each for each in together if id(each) not in on_trial and each.grad is not None]
        clipped = [each for each in others if not (scaling.has_unscaled and scaling.carried(each) != 1)]
        norms = [_norm(each) / scaling.carried(each) for each in clipped]
        skipped = any(not math.isfinite(_norm(each)) and scaling.skips(each) for each in others)
        return cls(math.sqrt(sum(norm * norm for norm in norms)), skipped, bool(clipped))

    @property
    def words(self) -> str:
        """What is said of them where `.grad` was judged; "" where there is none."""
        if not self.there:
            return ""
        return (
            f"; it was clipped together with .grad that is not checked, whose norm of {self.norm:.4g} is taken as it "
            "is: a mistake there that changes how much everything was clipped is not seen"
        )


def groups_by_optimizer(theta: Theta) -> list[frozenset[int]]:
    """The positions of the parameters that each of several optimizers steps; none where they share some."""
    positions = {id(entry.parameter): at for at, entry in enumerate(theta) if entry.role is Role.PARAMETER}
    optimizers = optimizers_of([theta[at].parameter for at in positions.values()])
    groups = list(dict.fromkeys(_positions(each, positions) for each in optimizers))
    apart = sum(map(len, groups)) == len(frozenset().union(*groups))
    return groups if apart and len(groups) > 1 else []


def _positions(optimizer: torch.optim.Optimizer, positions: dict[int, int]) -> frozenset[int]:
    return frozenset(positions[id(each)] for each in parameters_of(optimizer) if id(each) in positions)


def _norm(tensor: torch.Tensor) -> float:
    """The norm of its gradient; NaN where the gradient is not finite."""
    assert tensor.grad is not None, "others are not asked"
    grad = tensor.grad.detach()
    numbers = grad if grad.layout is torch.strided else grad.coalesce().values()
    wide = torch.complex128 if numbers.is_complex() else torch.float64
    with np.errstate(all="ignore"):
        return float(torch.linalg.vector_norm(numbers, dtype=wide))
