"""Autograd's gradient of J: what one backward leaves in `.grad`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.torch_internals.autograd import graph_is_used_up


def autograd_gradients(
    objective: Objective, theta: Theta, mode: PrecisionMode | None = None, *, at_theta: bool = False
) -> dict[int, AnalyticGradient]:
    """One autograd backward of J, by position in θ of the checked parameters.

    It is what `loss.backward()` leaves in `.grad`, whichever way it gets there; see `gradients_of`. Where the closure
    has run the backward of J itself, it is what that has left. `mode` is the precision mode of the evaluation, None for
    the usual one; `at_theta` says that the parameters hold θ.
    """
    with torch.enable_grad(), objective.evaluation(mode, at_theta=at_theta):
        return theta_gradients(objective.compute, theta, epsilon(objective.dtype))


def theta_gradients(compute: Callable[[], torch.Tensor], theta: Theta, eps: float) -> dict[int, AnalyticGradient]:
    """The gradients of J as `compute` evaluates it, on copies without `.grad`, by position in θ.

    `eps` is machine epsilon of the precision.
    """
    positions = theta.checked
    gradients, accumulated = _of_loss(compute(), [theta[position].parameter for position in positions])
    found: dict[int, AnalyticGradient] = {}
    for position in reversed(positions):  # each tensor goes when it has been copied: no two copies of all of them
        gradient = analytic_gradient(theta[position], gradients.pop(), eps)
        found[position] = replace(gradient, accumulated=accumulated)
    return {position: found[position] for position in positions}


def _of_loss(loss: torch.Tensor, parameters: list[torch.Tensor]) -> tuple[list[torch.Tensor | None], bool]:
    """The gradients, and whether a backward that J ran itself has left them in `.grad`."""
    left = [parameter.grad for parameter in parameters]
    ran = bool([gradient for gradient in left if gradient is not None])
    if not loss.requires_grad:
        return left, ran
    try:
        return gradients_of([loss], parameters), False
    except RuntimeError as error:
        if ran and graph_is_used_up(error):  # the closure has used the graph up
            return left, True
        raise
