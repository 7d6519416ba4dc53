"""The gradient on trial: autograd's own, or one derived by hand, as flat float64 arrays, one a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_gradcheck.differences.sampling import Floats
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective import Objective
from torch_gradcheck.precision import epsilon
from torch_gradcheck.theta import Theta, ThetaEntry, close_names


@dataclass(frozen=True)
class AnalyticGradient:
    """The gradient on trial of one parameter.

    Attributes:
        values: shape (coordinates,), float64; zeros where there is none.
        reached: False when the backward never reached the parameter (None instead of a tensor).
        epsilon: machine epsilon of the precision it was given in; its own rounding is no mistake.
    """

    values: Floats
    reached: bool
    epsilon: float


def autograd_gradients(objective: Objective, theta: Theta) -> dict[int, AnalyticGradient]:
    """One autograd backward of J, by position in θ of the checked parameters.

    Asks autograd for gradients instead of accumulating them, so that hooks on the accumulation (optimizers that step
    in the backward) do not fire; hooks on the tensors do. Where the closure has run the backward of J itself, or a
    reentrant checkpoint cannot be asked, what accumulates in the stand-ins' `.grad` is taken.
    """
    positions = theta.checked
    parameters = [theta[position].parameter for position in positions]
    with torch.enable_grad(), objective.evaluation():
        gradients = _asked(objective.compute(), parameters, objective)
    return {
        position: _analytic(theta[position], gradient, epsilon(objective.dtype))
        for position, gradient in zip(positions, gradients, strict=True)
    }


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


def _asked(loss: torch.Tensor, parameters: list[nn.Parameter], objective: Objective) -> list[torch.Tensor | None]:
    if not loss.requires_grad:
        return _accumulated(parameters, objective) if objective.runs_backward else [None for _ in parameters]
    asked = [parameter for parameter in parameters if parameter.requires_grad]  # not those that the forward has frozen
    try:
        gradients = iter(gradients_of([loss], asked, [torch.ones_like(loss)]))
        return [next(gradients) if parameter.requires_grad else None for parameter in parameters]
    except RuntimeError as error:
        if objective.runs_backward and "second time" in str(error):  # the closure has used the graph up
            return _accumulated(parameters, objective)
        raise


def _accumulated(parameters: list[nn.Parameter], objective: Objective) -> list[torch.Tensor | None]:
    objective.takes_accumulated = True
    return [parameter.grad for parameter in parameters]


def gradients_of(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Autograd's gradient of Σ ⟨cotangent, output⟩ for every input, None where it is not reached.

    All `outputs` have a graph. Where a checkpoint cannot be asked, what accumulates in the inputs' `.grad` is taken.
    """
    if not outputs:
        return [None for _ in inputs]
    if not _runs_a_backward_inside(outputs):
        return list(torch.autograd.grad(outputs, inputs, cotangents[: len(outputs)], allow_unused=True))
    with _accumulating(inputs):
        torch.autograd.backward(outputs, cotangents[: len(outputs)])
        return [each.grad for each in inputs]


def _runs_a_backward_inside(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether a reentrant checkpoint is part of the graph: it accumulates, and answers None to who asks."""
    waiting, seen = [output.grad_fn for output in outputs], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


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
