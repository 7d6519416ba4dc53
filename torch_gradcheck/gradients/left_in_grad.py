"""The gradients in `.grad` of parameters and of tensors of the batch, as a training step left them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.objective.theta import Theta, theta_of
from torch_gradcheck.objective.variables import Variable
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.optimizers import Scaling

NOT_SCALED = Scaling()


def left_gradients(
    theta: Theta, scaling: Scaling = NOT_SCALED, reduced_in: torch.dtype | None = None
) -> dict[int, AnalyticGradient]:
    """The gradients in `.grad` now, divided by the loss scale they still carry, by position in θ.

    Args:
        theta: the caller's own tensors.
        scaling: the loss scale; `.grad` of tensors that are no parameters carries it: no optimizer knows them.
        reduced_in: the dtype that they were summed in, over the ranks of a group, where it is a coarser one.
    """
    summed = 0.0 if reduced_in is None else epsilon(reduced_in)
    gradients = {}
    for position in theta.checked:
        entry = theta[position]
        grad = entry.parameter.grad
        eps = max(summed, epsilon(entry.parameter.dtype if grad is None else grad.dtype))
        left = analytic_gradient(entry, grad, eps)
        carried = scaling.carried(entry.parameter) if entry.role is Role.PARAMETER else scaling.scale
        gradients[position] = AnalyticGradient(left.values / carried, left.reached, eps)
    return gradients


def theta_in_grad(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], variables: Sequence[Variable]
) -> Theta:
    """The parameters and the tensors of the batch that the patterns select, without tensors that have no `.grad`.

    A step is free to leave none on a tensor of the batch: it may have run on a copy. Raises as `theta_of`.
    """
    theta = theta_of(model, include, exclude, variables)
    return theta.without([each for each in variables if each.role is not Role.INPUT or not each.has_grad])


def on_missing_grad(variables: Sequence[Variable]) -> str:
    """The note on tensors of the batch without a `.grad`; "" without such."""
    names = [each.name for each in variables if each.role is Role.INPUT and not each.has_grad]
    if not names:
        return ""
    return f"no .grad to judge on {listed(names)} (a tensor that is no leaf keeps one after retain_grad())"
