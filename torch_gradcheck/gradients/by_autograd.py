"""Autograd's gradient of J: what one backward leaves in `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.gradients.refused_gradients import told
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.torch_internals.autograd import graph_is_used_up


def autograd_gradients(
    objective: Objective,
    theta: Theta,
    mode: PrecisionMode | None = None,
    *,
    at_theta: bool = False,
    wanted: Sequence[int] | None = None,
) -> dict[int, AnalyticGradient]:
    """One autograd backward of J, by position in θ of the checked parameters.

    It is what `loss.backward()` leaves in `.grad`, whichever way it gets there; see `gradients_of`. Where the closure
    has run the backward of J itself, it is what that has left.

    Args:
        objective: J.
        theta: its parameters.
        mode: the precision mode of the evaluation, None for the usual one.
        at_theta: the parameters hold θ.
        wanted: the positions that are asked for; the gradients of others are not kept. None: of all that are checked.

    Raises:
        MisfitError: torch cannot use the backward of a Function.
    """

    def run() -> dict[int, AnalyticGradient]:
        with torch.enable_grad(), objective.evaluation(mode, at_theta=at_theta), objective.without_its_steps():
            return theta_gradients(objective.compute, theta, epsilon(objective.dtype), wanted)

    return told(run, objective.model)


def theta_gradients(
    compute: Callable[[], torch.Tensor], theta: Theta, eps: float, wanted: Sequence[int] | None = None
) -> dict[int, AnalyticGradient]:
    """The gradients of J as `compute` evaluates it, on copies without `.grad`, by position in θ.

    `eps` is machine epsilon of the precision; `wanted` as for `autograd_gradients`.
    """
    positions = theta.checked
    asked = set(positions if wanted is None else wanted)
    unwanted = [theta[position].parameter for position in positions if position not in asked]
    gradients, accumulated = _of_loss(compute(), [theta[position].parameter for position in positions], unwanted)
    found: dict[int, AnalyticGradient] = {}
    for position in reversed(positions):  # each tensor goes when it has been copied: no two copies of all of them
        gradient = gradients.pop()
        if position in asked:
            found[position] = replace(analytic_gradient(theta[position], gradient, eps), accumulated=accumulated)
    return {position: found[position] for position in positions if position in asked}


def _of_loss(
    loss: torch.Tensor, parameters: list[torch.Tensor], unwanted: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor | None], bool]:
    """The gradients, and whether a backward that J ran itself has left them in `.grad`."""
    left = [parameter.grad for parameter in parameters]
    ran = bool([gradient for gradient in left if gradient is not None])
    if not loss.requires_grad:
        return left, ran
    try:
        return gradients_of([loss], parameters, unwanted=unwanted), False
    except RuntimeError as error:
        if ran and graph_is_used_up(error):  # the closure has used the graph up
            return left, True
        raise
