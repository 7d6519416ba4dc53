"""Draws with a gradient by implicit reparameterisation: right on average, and not the derivative of one draw.

A gamma variate is drawn by rejection. At a fixed random state it jumps where another proposal is accepted. In between
it moves by another law than the one that autograd differentiates.
Source: Figurnov, Mohamed, Mnih, "Implicit Reparameterization Gradients", NeurIPS 2018.
"""

from __future__ import annotations

import torch

from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.torch_internals.autograd import is_implicit_draw, leaf_of, nodes_from


def upstream_of_draws(objective: Objective) -> set[int]:
    """The ids of the leaves that such a draw in J depends on."""
    with torch.enable_grad(), objective.evaluation(at_theta=True):
        J = objective.compute()  # keeps the graph, which a node written in Python does not
        draws = [node for node in nodes_from([J.grad_fn]) if is_implicit_draw(node)]
        return {id(leaf) for leaf in map(leaf_of, nodes_from(draws)) if leaf is not None}
