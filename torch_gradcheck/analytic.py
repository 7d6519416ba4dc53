"""The gradient on trial: autograd's own, one derived by hand, or what `.grad` holds, flat in float64 by parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_gradcheck.autograd_graph import nodes_from
from torch_gradcheck.differences.sampling import Floats
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective import Objective
from torch_gradcheck.precision import PrecisionMode, epsilon
from torch_gradcheck.theta import Theta, ThetaEntry, close_names


@dataclass(frozen=True)
class AnalyticGradient:
    """The gradient on trial of one parameter.

    Attributes:
        values: shape (coordinates,), float64; zeros where there is none.
        reached: False when the backward never reached the parameter (None instead of a tensor).
        epsilon: machine epsilon of the precision it was given in; its own rounding is no mistake.
        accumulated: it is what a backward that J ran itself has left in `.grad`.
    """

    values: Floats
    reached: bool
    epsilon: float
    accumulated: bool = False


def autograd_gradients(
    objective: Objective, theta: Theta, mode: PrecisionMode | None = None
) -> dict[int, AnalyticGradient]:
    """One autograd backward of J, by position in θ of the checked parameters.

    Asks autograd for gradients instead of accumulating them, so that hooks on the accumulation (optimizers that step
    in the backward) do not fire; hooks on the tensors do. Where the closure has run the backward of J itself, or a
    reentrant checkpoint cannot be asked, what accumulates in the stand-ins' `.grad` is taken. `mode` is the precision
    mode of the evaluation, None for the usual one.
    """
    with torch.enable_grad(), objective.evaluation(mode):
        gradients = theta_gradients(objective.compute, theta, epsilon(objective.dtype))
    objective.takes_accumulated = any(gradient.accumulated for gradient in gradients.values())
    return gradients


def theta_gradients(compute: Callable[[], torch.Tensor], theta: Theta, eps: float) -> dict[int, AnalyticGradient]:
    """The gradients of J as `compute` evaluates it, on stand-ins without `.grad`, by position in θ.

    `eps` is machine epsilon of the precision.
    """
    positions = theta.checked
    gradients, accumulated = _asked(compute(), [theta[position].parameter for position in positions])
    return {
        position: replace(_analytic(theta[position], gradient, eps), accumulated=accumulated)
        for position, gradient in zip(positions, gradients, strict=True)
    }


def left_gradients(theta: Theta, scale: float = 1.0) -> dict[int, AnalyticGradient]:
    """What the parameters' `.grad` holds now, divided by the loss scale it still carries, by position in θ."""
    gradients = {}
    for position in theta.checked:
        grad = theta[position].parameter.grad
        eps = epsilon(theta[position].parameter.dtype if grad is None else grad.dtype)
        left = _analytic(theta[position], grad, eps)
        gradients[position] = AnalyticGradient(left.values / scale, left.reached, eps)
    return gradients


def given_gradients(gradients: Mapping[str, Any], theta: Theta) -> dict[int, AnalyticGradient]:
    """Gradients derived by hand, by position in θ.

    Raises:
        InvalidRequestError: a name the model does not have, a checked parameter without a gradient, a shape or a kind
            of number that does not fit.
    """
    names = {name: entry for entry in theta for name in (entry.name, *entry.aliases)}
    unknown = [name for name in gradients if name not in names]
    if unknown:
        raise InvalidRequestError(
            f"gradients has {unknown[0]!r}, which is no checked parameter; {close_names(str(unknown[0]), list(names))}."
        )
    return {position: _given(theta[position], gradients) for position in theta.checked}


def _asked(loss: torch.Tensor, parameters: list[nn.Parameter]) -> tuple[list[torch.Tensor | None], bool]:
    """The gradients, and whether they are what a backward that J ran itself has left in `.grad`."""
    left = [parameter.grad for parameter in parameters]
    ran = any(gradient is not None for gradient in left)
    if not loss.requires_grad:
        return left, ran
    asked = [parameter for parameter in parameters if parameter.requires_grad]  # not those that the forward has frozen
    try:
        gradients = iter(gradients_of([loss], asked))
        return [next(gradients) if parameter.requires_grad else None for parameter in parameters], False
    except RuntimeError as error:
        if ran and "second time" in str(error):  # the closure has used the graph up
            return left, True
        raise


def gradients_of(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor | None]:
    """Autograd's gradient of Σ ⟨cotangent, output⟩ for every input, None where it is not reached.

    All `outputs` have a graph. Without `cotangents` they are scalars, and torch has no need to import sympy for half a
    second. Where a checkpoint cannot be asked, what accumulates in the inputs' `.grad` is taken.
    """
    if not outputs:
        return [None for _ in inputs]
    if not _runs_a_backward_inside(outputs):
        return list(torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True))
    with _accumulating(inputs):
        torch.autograd.backward(outputs, cotangents)
        return [each.grad for each in inputs]


def _runs_a_backward_inside(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether a reentrant checkpoint is part of the graph: it accumulates, and answers None to who asks."""
    nodes = nodes_from(output.grad_fn for output in outputs)
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes)


@contextmanager
def _accumulating(inputs: Sequence[torch.Tensor]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in inputs:
            each.grad = None


def _analytic(entry: ThetaEntry, gradient: torch.Tensor | None, eps: float) -> AnalyticGradient:
    if gradient is None:
        return AnalyticGradient(np.zeros(entry.coordinates), reached=False, epsilon=eps)
    return AnalyticGradient(_flat(entry, gradient), reached=True, epsilon=eps)


def _flat(entry: ThetaEntry, gradient: torch.Tensor) -> Floats:
    """C-ordered float64 values; a complex gradient g = ∂J/∂Re + i·∂J/∂Im as (real, imaginary) pairs."""
    dense = gradient.detach().to_dense() if gradient.layout is not torch.strided else gradient.detach()
    if entry.is_complex:
        dense = torch.view_as_real(dense.to(torch.complex128).resolve_conj().contiguous())
    return np.array(dense.cpu().to(torch.float64).numpy(), dtype=np.float64).ravel()


def _given(entry: ThetaEntry, gradients: Mapping[str, Any]) -> AnalyticGradient:
    keys = [name for name in (entry.name, *entry.aliases) if name in gradients]
    if not keys:
        raise InvalidRequestError(
            f"gradients has nothing for parameter {entry.name!r} of shape {entry.shape}; "
            "add it, or leave the parameter out with exclude=."
        )
    if len(keys) > 1:
        raise InvalidRequestError(
            f"gradients names one tied parameter twice, as {keys[0]!r} and {keys[1]!r}: give their sum once."
        )
    value = gradients[keys[0]]
    if value is None:
        return _analytic(entry, None, epsilon(torch.float64))
    tensor = _as_tensor(keys[0], value)
    if tuple(tensor.shape) != entry.shape:
        raise InvalidRequestError(
            f"gradients[{keys[0]!r}] has shape {tuple(tensor.shape)}, the parameter has {entry.shape}."
        )
    if tensor.is_complex() and not entry.is_complex:
        raise InvalidRequestError(f"gradients[{keys[0]!r}] is complex ({tensor.dtype}), the parameter is real.")
    inexact = tensor.is_floating_point() or tensor.is_complex()
    try:
        return _analytic(entry, tensor, epsilon(tensor.dtype) if inexact else epsilon(torch.float64))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise InvalidRequestError(
            f"gradients[{keys[0]!r}] holds no numbers to compare with (dtype {tensor.dtype}, device {tensor.device}, "
            f"layout {tensor.layout}): give an ordinary tensor or array."
        ) from error


def _as_tensor(name: str, value: Any) -> torch.Tensor:
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        if not (tensor.is_nested or is_lazy(tensor)):
            return tensor
        raise TypeError("it has no shape")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequestError(
            f"gradients[{name!r}] must be a tensor or an array of numbers, got {type(value).__name__}."
        ) from error
