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
from torch_gradcheck.precision.rounding_noise import KernelsInMode
from torch_gradcheck.request import Request

MAXIMA = frozenset({torch.amax, torch.max, torch.maximum, torch.Tensor.amax, torch.Tensor.max, torch.Tensor.maximum})
"""Functions that give a maximum."""

THE_SAME = 1e-10
"""Gradients that differ by less, relative to their largest entry, are the same in float64."""

ROUNDED = 100.0
"""So are those that differ by less than this many times what rounding in float64 does: of a saturated softmax terms of
any size cancel, and leave their roundings alone."""


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

        def gradients(*, as_constants: bool, noise: torch.Generator | None = None) -> list[torch.Tensor | None]:
            mode = PrecisionMode(torch.float64) if noise is None else KernelsInMode(torch.float64, torch.float64, noise)
            mode.drawn_in = candidate.drawn_in
            with Maxima(as_constants=as_constants):
                return list(ran(forward, parts, borrowed, mode).gradients)

        noise = torch.Generator("cpu").manual_seed(request.seed % 2**63)
        runs = gradients(as_constants=False), gradients(as_constants=True), gradients(as_constants=True, noise=noise)
        return all(_are_the_same(*three) for three in zip(*runs, strict=True))


def _are_the_same(through: torch.Tensor | None, constant: torch.Tensor | None, noisy: torch.Tensor | None) -> bool:
    """Whether a gradient is the same with maxima as constants; `noisy` is that with rounding as noise."""
    if through is None or constant is None or noisy is None or not through.numel():
        return through is constant or (through is not None and not through.numel())
    return _distance(through, constant) <= max(
        THE_SAME * through.abs().max().item(), ROUNDED * _distance(noisy, constant)
    )


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    distance: float = (one - other).abs().max().item()
    return distance


def _needs_gradient(result: torch.Tensor | tuple[torch.Tensor, ...]) -> bool:
    values = result if isinstance(result, torch.Tensor) else result[0]
    return values.requires_grad


def _constant(result: Any) -> Any:
    """A maximum, or the maxima and their positions, through which no gradient goes."""
    if isinstance(result, torch.Tensor):
        return result.detach()
    pair: Callable[..., Any] = type(result)
    return pair((result[0].detach(), *result[1:]))
