"""Draws whose gradient torch takes by implicit reparameterisation: right on average, not the derivative of one draw.

A gamma variate is drawn by rejection. At a fixed random state it jumps where another proposal is accepted, and moves in
between by another law than the one that autograd differentiates.
Source: Figurnov, Mohamed, Mnih, "Implicit Reparameterization Gradients", NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from torch_gradcheck.autograd_graph import nodes_from
from torch_gradcheck.facts import ParameterReport, Status
from torch_gradcheck.objective import Objective
from torch_gradcheck.theta import Theta

DRAWS = ("StandardGammaBackward", "_DirichletBackward")
"""The nodes of autograd's graph; beta, chi-squared and Student's t distributions draw through them, too."""

REASON = (
    "J draws it from a gamma or Dirichlet distribution, whose gradient is right on average only: "
    "differences of one draw say nothing about it"
)


def excused(rows: Sequence[ParameterReport], objective: Objective, theta: Theta) -> list[ParameterReport]:
    """The rows; a mismatch whose gradient comes through such a draw is undecided."""
    if not any(row.status is Status.MISMATCH for row in rows):
        return list(rows)
    upstream = _upstream_of_draws(objective)
    return [
        replace(row, status=Status.UNDECIDED, reason=REASON, mismatched=0)
        if row.status is Status.MISMATCH and id(entry.parameter) in upstream
        else row
        for row, entry in zip(rows, theta, strict=True)
    ]


def _upstream_of_draws(objective: Objective) -> set[int]:
    """The ids of the leaves that a draw depends on."""
    with torch.enable_grad(), objective.evaluation():
        draws = [node for node in nodes_from([objective.compute().grad_fn]) if node.name().startswith(DRAWS)]
        return {id(node.variable) for node in nodes_from(draws) if hasattr(node, "variable")}
