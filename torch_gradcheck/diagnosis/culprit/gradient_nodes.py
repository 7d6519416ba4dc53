"""In a check of second order: the first node of the graph of J whose gradients move otherwise than autograd says.

The gradients that leave the nodes in the backward of J are functions of θ. Autograd differentiates them one by one, and
here they are differenced along one wrong coordinate. Gradients pass the nodes in the order of the backward, so the
first that disagrees is where the double backward goes wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.double_backward import DoubleBackwardRecord
from torch_gradcheck.gradients.watched_backwards import Place
from torch_gradcheck.objective.function_outputs import is_of_bend
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.precision.dtypes import epsilon

MOST_NODES = 400
"""How many nodes are differentiated, at most: each takes a double backward."""

APART = 1e-3
"""Two derivatives of one gradient differ where they do by a thousandth of the largest that was seen before, or more."""


def first_wrong_node(objective: Objective, wrong: WrongCoordinate) -> Place | None:
    """The node; None where every gradient has the derivative that autograd gives, or the runs have other nodes.

    None as well where it is one by which a check bends the outputs of a function: what it is given goes wrong before.

    Args:
        objective: the slope of J.
        wrong: a coordinate along which its gradient is wrong.
    """
    step = epsilon(objective.dtype) ** (1 / 3) * wrong.unit
    with wrong.moved(step) as ahead:
        after = _values(_recorded(objective))
    with wrong.moved(-step) as back:
        before = _values(_recorded(objective))
    record = DoubleBackwardRecord(objective.model)
    with torch.enable_grad(), objective.evaluation(at_theta=True):
        with record:
            objective.compute()
        if not len(record.left) == len(after) == len(before):
            return None
        largest = 0.0
        for k, (node, gradients) in enumerate(record.left[:MOST_NODES]):
            numeric = (after[k] - before[k]) / (ahead - back)
            analytic = _derivative(gradients, wrong, k)
            largest = max(largest, abs(numeric), abs(analytic))
            if not abs(analytic - numeric) <= APART * largest:
                return None if is_of_bend(node) else record.place(node)
    return None


def _recorded(objective: Objective) -> Sequence[tuple[Any, Sequence[Any]]]:
    with torch.enable_grad(), objective.evaluation(), DoubleBackwardRecord(objective.model) as record:
        objective.compute()
    return record.left


def _values(left: Sequence[tuple[Any, Sequence[Any]]]) -> list[float]:
    return [float(_projected(gradients, k).detach()) for k, (_, gradients) in enumerate(left)]


def _derivative(gradients: Sequence[Any], wrong: WrongCoordinate, k: int) -> float:
    """That of the projected gradients along the coordinate, by autograd."""
    projected = _projected(gradients, k)
    if not projected.requires_grad:
        return 0.0
    gradients_of_it = torch.autograd.grad(projected, wrong.entry.parameter, retain_graph=True, allow_unused=True)
    found: torch.Tensor | None = gradients_of_it[0]
    return 0.0 if found is None else wrong.of(found)


def _projected(gradients: Sequence[Any], k: int) -> torch.Tensor:
    """The gradients that leave one node as one number: Σ ⟨u, gradient⟩ with random u of size 1."""
    generator = torch.Generator("cpu").manual_seed(k)
    total = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        if isinstance(gradient, torch.Tensor) and gradient.numel():
            dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
            real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
            u = torch.randn(real.shape, generator=generator, dtype=torch.float64) / math.sqrt(real.numel())
            total = total + (u.to(real) * real).sum().double().cpu()
    return total
