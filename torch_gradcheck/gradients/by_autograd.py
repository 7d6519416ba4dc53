"""Autograd's gradient of J: one backward, asked for and not accumulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.torch_internals.autograd import graph_is_used_up, is_reentrant_checkpoint, nodes_from


def autograd_gradients(
    objective: Objective, theta: Theta, mode: PrecisionMode | None = None, *, at_theta: bool = False
) -> dict[int, AnalyticGradient]:
    """One autograd backward of J, by position in θ of the checked parameters.

    Gradients are asked of autograd and not accumulated: hooks on the accumulation (optimizers that step in the
    backward) do not fire, hooks on the tensors do. What accumulates in the copies' `.grad` is taken in two cases: the
    closure has run the backward of J itself, or a reentrant checkpoint cannot be asked. `mode` is the precision mode
    of the evaluation, None for the usual one; `at_theta` says that the parameters hold θ.
    """
    with torch.enable_grad(), objective.evaluation(mode, at_theta=at_theta):
        return theta_gradients(objective.compute, theta, epsilon(objective.dtype))


def theta_gradients(compute: Callable[[], torch.Tensor], theta: Theta, eps: float) -> dict[int, AnalyticGradient]:
    """The gradients of J as `compute` evaluates it, on copies without `.grad`, by position in θ.

    `eps` is machine epsilon of the precision.
    """
    positions = theta.checked
    gradients, accumulated = _asked(compute(), [theta[position].parameter for position in positions])
    return {
        position: replace(analytic_gradient(theta[position], gradient, eps), accumulated=accumulated)
        for position, gradient in zip(positions, gradients, strict=True)
    }


def _asked(loss: torch.Tensor, parameters: list[nn.Parameter]) -> tuple[list[torch.Tensor | None], bool]:
    """The gradients, and whether a backward that J ran itself has left them in `.grad`."""
    left = [parameter.grad for parameter in parameters]
    ran = any(gradient is not None for gradient in left)
    if not loss.requires_grad:
        return left, ran
    asked = [parameter for parameter in parameters if parameter.requires_grad]  # not those that the forward has frozen
    try:
        gradients = iter(gradients_of([loss], asked))
        return [next(gradients) if parameter.requires_grad else None for parameter in parameters], False
    except RuntimeError as error:
        if ran and graph_is_used_up(error):  # the closure has used the graph up
            return left, True
        raise


def gradients_of(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor | None]:
    """Autograd's gradient of Σ ⟨cotangent, output⟩ for every input, None where it is not reached.

    All `outputs` have a graph. Without `cotangents` they are scalars; torch then need not import sympy, half a second.
    Where a reentrant checkpoint cannot be asked, what accumulates in the inputs' `.grad` is taken.
    """
    if not outputs:
        return [None for _ in inputs]
    if not _runs_a_backward_inside(outputs):
        return list(torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True))
    with _accumulating(inputs):
        torch.autograd.backward(outputs, cotangents)
        return [each.grad for each in inputs]


def _runs_a_backward_inside(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether a reentrant checkpoint is part of the graph: it accumulates, and returns None when it is asked."""
    nodes = nodes_from(output.grad_fn for output in outputs)
    return any(is_reentrant_checkpoint(node) for node in nodes)


@contextmanager
def _accumulating(inputs: Sequence[torch.Tensor]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in inputs:
            each.grad = None
