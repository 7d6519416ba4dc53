"""The maximum that a softmax subtracts before it exponentiates: a constant to kernels, and not to all references.

exp(x − max x) / Σ exp(x − max x) is the same whatever is subtracted, so the gradient through the maximum is 0. A
reference of plain code may let it through all the same, and then its roundings happen to cancel where the softmax is
saturated: at the largest number it is far closer to what is right than torch's own softmax. What rounding does is then
measured with the maximum as a constant as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.runs.run import ran
from torch_gradcheck.against_reference.runs.sides import Candidate, lent
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.request import Request

MAXIMA = frozenset({torch.amax, torch.max, torch.maximum, torch.Tensor.amax, torch.Tensor.max, torch.Tensor.maximum})
"""Functions that give a maximum."""

THE_SAME = 1e-10
"""Gradients that differ by less, relative to their largest entry, are the same in float64."""


class Maxima(TorchFunctionMode):
    """Sees the maxima that a computation takes.

    Args:
        as_constants: whether no gradient goes through them.

    Attributes:
        seen: whether there were any through which a gradient could go.
    """

    def __init__(self, *, as_constants: bool = False) -> None:
        super().__init__()
        self.seen, self._as_constants = False, as_constants

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in MAXIMA:
            return result
        self.seen = self.seen or _needs_gradient(result)
        return _constant(result) if self._as_constants else result


def are_constants(computation: Computation, candidate: Candidate, request: Request, start: Start) -> bool:
    """Whether the gradients of a computation are the same in float64 with its maxima as constants.

    Args:
        computation: the reference.
        candidate: whose tensors are on trial.
        request: the options.
        start: the values that the reference is given in float64.
    """
    with lent(computation, request, start, torch.float64) as borrowed:
        theta = theta_of(computation.model, (), (), computation.loss.variables)
        parts, forward = parts_of_gradients(candidate.theta, theta, computation.loss), computation.at(torch.float64)

        def gradients(maxima: Maxima) -> list[torch.Tensor | None]:
            mode = PrecisionMode(torch.float64)
            mode.drawn_in = candidate.drawn_in
            with maxima:
                return list(ran(forward, parts, borrowed, mode).gradients)

        through, constant = gradients(Maxima()), gradients(Maxima(as_constants=True))
        return all(_are_the_same(*pair) for pair in zip(through, constant, strict=True))


def _are_the_same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None or not one.numel():
        return one is other or (one is not None and not one.numel())
    off: float = (one - other).abs().max().item()
    return off <= THE_SAME * one.abs().max().item()


def _needs_gradient(result: torch.Tensor | tuple[torch.Tensor, ...]) -> bool:
    values = result if isinstance(result, torch.Tensor) else result[0]
    return values.requires_grad


def _constant(result: Any) -> Any:
    """A maximum, or the maxima and their positions, through which no gradient goes."""
    if isinstance(result, torch.Tensor):
        return result.detach()
    pair: Callable[..., Any] = type(result)
    return pair((result[0].detach(), *result[1:]))
