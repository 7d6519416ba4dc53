"""Gradients that the user derived by hand, validated against the parameters' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.objective.theta import Theta, ThetaEntry
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.words import close_names


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
        return analytic_gradient(entry, None, epsilon(torch.float64))
    tensor = _as_tensor(keys[0], value)
    if tuple(tensor.shape) != entry.shape:
        raise InvalidRequestError(
            f"gradients[{keys[0]!r}] has shape {tuple(tensor.shape)}, the parameter has {entry.shape}."
        )
    if tensor.is_complex() and not entry.is_complex:
        raise InvalidRequestError(f"gradients[{keys[0]!r}] is complex ({tensor.dtype}), the parameter is real.")
    inexact = tensor.is_floating_point() or tensor.is_complex()
    try:
        return analytic_gradient(entry, tensor, epsilon(tensor.dtype) if inexact else epsilon(torch.float64))
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
