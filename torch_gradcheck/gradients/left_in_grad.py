"""The gradients in the parameters' `.grad`, as a training step left them."""

from __future__ import annotations

from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon


def left_gradients(theta: Theta, scale: float = 1.0) -> dict[int, AnalyticGradient]:
    """The gradients in `.grad` now, divided by the loss scale they still carry, by position in θ."""
    gradients = {}
    for position in theta.checked:
        grad = theta[position].parameter.grad
        eps = epsilon(theta[position].parameter.dtype if grad is None else grad.dtype)
        left = analytic_gradient(theta[position], grad, eps)
        gradients[position] = AnalyticGradient(left.values / scale, left.reached, eps)
    return gradients
