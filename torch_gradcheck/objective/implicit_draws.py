"""Draws whose gradient torch takes by implicit reparameterisation: right on average, not the derivative of one draw.

A gamma variate is drawn by rejection. At a fixed random state it jumps where another proposal is accepted, and moves in
between by another law than the one that autograd differentiates.
Source: Figurnov, Mohamed, Mnih, "Implicit Reparameterization Gradients", NeurIPS 2018.
"""

from __future__ import annotations

import torch

from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.torch_internals.autograd import nodes_from

DRAWS = ("StandardGammaBackward", "_DirichletBackward")
"""The nodes of autograd's graph; beta, chi-squared and Student's t distributions draw through them, too."""


def upstream_of_draws(objective: Objective) -> set[int]:
    """The ids of the leaves that a draw depends on."""
    with torch.enable_grad(), objective.evaluation():
        draws = [node for node in nodes_from([objective.compute().grad_fn]) if node.name().startswith(DRAWS)]
        return {id(node.variable) for node in nodes_from(draws) if hasattr(node, "variable")}
