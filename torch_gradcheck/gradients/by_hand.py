"""Gradients that the user derived by hand, validated against the parameters' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.gradients.analytic import AnalyticGradient, analytic_gradient
from torch_gradcheck.objective.theta import Theta, ThetaEntry
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.close_names import close_names
from torch_gradcheck.reporting.words import noun


def check_names(gradients: Mapping[str, Any], names: Sequence[Sequence[str]], may_be_named: Sequence[str] = ()) -> None:
    """Raises InvalidRequestError where gradients have a name that no parameter has, or name one parameter twice.

    Args:
        gradients: those derived by hand, by name.
        names: the names of every selected parameter; a tied one has several.
        may_be_named: names besides that gradients may have, of tensors that are on trial only where they are named.
    """
    every_name = [name for group in names for name in group]
    unknown = [name for name in gradients if name not in every_name]
    if unknown:
        known = [*dict.fromkeys([*every_name, *may_be_named])]
        nouns = "parameter or input" if may_be_named else "parameter"
        raise InvalidRequestError(
            f"gradients has {unknown[0]!r}, which is no checked {nouns}; {close_names(str(unknown[0]), known)}."
        )
    for group in names:
        given = [name for name in group if name in gradients]
        if len(given) > 1:
            raise InvalidRequestError(
                f"gradients names one tied parameter twice, as {given[0]!r} and {given[1]!r}: give their sum once."
            )


def given_gradients(gradients: Mapping[str, Any], theta: Theta) -> dict[int, AnalyticGradient]:
    """Gradients derived by hand, by position in θ; their names are checked already.

    Raises:
        InvalidRequestError: a checked parameter without a gradient, a shape or a kind of number that does not fit.
    """
    return {position: _given(theta[position], gradients) for position in theta.checked}


def _given(entry: ThetaEntry, gradients: Mapping[str, Any]) -> AnalyticGradient:
    key = next((name for name in (entry.name, *entry.aliases) if name in gradients), None)
    if key is None:
        raise InvalidRequestError(
            f"gradients has nothing for {noun([entry.role])} {entry.name!r} of shape {entry.shape}; "
            "add it, or leave it out with exclude=."
        )
    value = gradients[key]
    if value is None:
        return analytic_gradient(entry, None, epsilon(torch.float64))
    tensor = _as_tensor(key, value)
    if tuple(tensor.shape) != entry.shape:
        raise InvalidRequestError(
            f"gradients[{key!r}] has shape {tuple(tensor.shape)}, the {noun([entry.role])} has {entry.shape}: "
            "give one of that shape."
        )
    if tensor.is_complex() and not entry.is_complex:
        raise InvalidRequestError(
            f"gradients[{key!r}] is complex ({tensor.dtype}), the {noun([entry.role])} is real: take .real."
        )
    inexact = tensor.is_floating_point() or tensor.is_complex()
    try:
        return analytic_gradient(entry, tensor, epsilon(tensor.dtype) if inexact else epsilon(torch.float64))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise InvalidRequestError(
            f"gradients[{key!r}] holds no numbers to compare with (dtype {tensor.dtype}, device {tensor.device}, "
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
