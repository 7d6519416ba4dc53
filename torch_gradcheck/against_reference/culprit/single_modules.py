"""A module of the candidate beside the reference's of the same name, both run alone on what one call was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torch_gradcheck.against_reference.judging.compared import compared
from torch_gradcheck.against_reference.judging.judge import Judged, judged
from torch_gradcheck.against_reference.runs.computation import FunctionComputation
from torch_gradcheck.against_reference.runs.counterparts import Counterparts, parts_of_gradients
from torch_gradcheck.against_reference.runs.rounded import rounded_runs
from torch_gradcheck.against_reference.runs.run import Run, ran
from torch_gradcheck.against_reference.runs.sides import Candidate, candidate_of, lent
from torch_gradcheck.against_reference.runs.upstream import Outputs, Upstream
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.diagnosis.culprit.argument_copies import laid_out_alike, replaced
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.objective.function_call import FunctionCall
from torch_gradcheck.objective.function_loss import FunctionLoss
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.precision.dtypes import are_finite, epsilon, is_inexact
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.devices import in_float64
from torch_gradcheck.torch_internals.modules import uncompiled


@dataclass(frozen=True)
class SingleModule:
    """One call of a module of the candidate, and the reference's module of the same name.

    Attributes:
        name: the qualified name of both.
        call: recorded in a run of the candidate, in its own dtypes.
        number: which call of this module it is, from 0 on.
        reference: the reference's module.
    """

    name: str
    call: RecordedCall
    number: int
    reference: nn.Module

    @property
    def module(self) -> nn.Module:
        """The candidate's module."""
        assert isinstance(self.call.owner, nn.Module)
        return self.call.owner

    @property
    def kind(self) -> str:
        """The name of its class, of the caller's own where torch.compile has wrapped it."""
        return type(uncompiled(self.module)).__name__

    @cached_property
    def is_patched(self) -> bool:
        """Whether the candidate's forward is other code than the reference's."""
        return code_of(self.module) is not code_of(self.reference)

    @property
    def size(self) -> float:
        """The sum of the squares of the gradients that the outputs were given; NaN or infinite where they were."""
        given = [in_float64(each) for each in self.call.cotangents if each is not None]
        return sum([float(each.abs().square().sum()) for each in given])

    @property
    def can_be_judged(self) -> bool:
        """Whether it was given finite numbers, and finite gradients or none."""
        numbers = [each for each in [*self.call.inputs, *self.call.cotangents] if each is not None and is_inexact(each)]
        return all(bool(are_finite(each).all()) for each in numbers)

    @property
    def has_gradients(self) -> bool:
        """Whether a gradient arrived for what it returned: none does for tables, masks and what is frozen."""
        return self.call.receives

    def judged(self, values: Counterparts, request: Request) -> list[Judged]:
        """The verdict on every gradient and output of the module alone, with error bars of its own.

        Args:
            values: of the parameters and buffers of both models.
            request: the options.

        Raises:
            Exception: whatever a module raises that cannot be run alone, or cannot be compared.
        """
        request = replace(request, include=(), exclude=())
        upstream, (args, kwargs) = _Recorded(self.call.cotangents), self._arguments
        own, other = [
            FunctionComputation(FunctionLoss(FunctionCall(module, args, kwargs, writes=True), request.seed), upstream)
            for module in map(self._on_trial, (self.module, self.reference))
        ]
        found = candidate_of(own, request, Start(self.call.random, values.moved))
        start, in_float64 = [values.start(each, self.call.random) for each in (values.rounded, values.exact)]
        exact = _exact(other, found, request, in_float64)
        rounded = rounded_runs(other, found, request, start, in_float64)
        return [judged(each, request.beyond_rounding) for each in compared(found, exact, rounded)]

    def position_of(self, argument: torch.Tensor) -> int:
        """Which of the tensors that the call was given an argument of the module alone stands for."""
        return next(k for k, each in enumerate(self.call.inputs) if self._copies.get(id(each)) is argument)

    def _on_trial(self, module: nn.Module) -> nn.Module:
        return module if self.has_gradients else _WithoutGradients(module, self._precision)

    @property
    def _precision(self) -> torch.dtype:
        """The coarsest one of what the call is given, has and returns."""
        tensors = [*self.call.inputs, *self.call.ungraphed.values(), *self.module.parameters()]
        dtypes = [each.dtype for each in tensors if each.dtype.is_floating_point]
        return max(dtypes, key=epsilon, default=torch.float32)

    @cached_property
    def _copies(self) -> dict[int, torch.Tensor]:
        """Copies of the recorded tensors by their ids; those that required a gradient are on trial."""
        needed = zip(self.call.inputs, self.call.differentiable, strict=True)
        asked = {id(tensor) for tensor, each in needed if each}
        return {
            id(tensor): laid_out_alike(tensor).requires_grad_(id(tensor) in asked)
            for tensor in self.call.inputs
            if not isinstance(tensor, nn.Parameter)
        }

    @cached_property
    def _arguments(self) -> tuple[Any, Any]:
        arguments: tuple[Any, Any] = replaced(self.call.arguments, lambda each: self._copies.get(id(each), each))
        return arguments


class _WithoutGradients(nn.Module):
    """A module whose outputs need no gradient, with a parameter that it does not use: something is to be on trial.

    Args:
        module: what is called.
        dtype: of the parameter.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.unused = module, nn.Parameter(torch.zeros((), dtype=dtype, device="cpu"))
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class _Recorded(Upstream):
    """The gradients that the outputs of a call were given in a run, in place of random ones.

    Args:
        cotangents: one an output; None for none.
    """

    def __init__(self, cotangents: Sequence[torch.Tensor | None]) -> None:
        super().__init__(0)
        self._cotangents = cotangents

    def _draw(self, outputs: Outputs) -> None:
        super()._draw(outputs)
        pairs = zip(outputs, self._cotangents, strict=True)
        self._rounded = {k: v.expand_as(output) for k, ((_, output), v) in enumerate(pairs) if v is not None}


def _exact(computation: FunctionComputation, candidate: Candidate, request: Request, start: Start) -> Run:
    """The run of the reference's module in float64, on the numbers that the candidate's was given."""
    mode = PrecisionMode(torch.float64)
    mode.drawn_in = candidate.drawn_in
    with lent(computation, request, start, torch.float64) as borrowed:
        theta = theta_of(computation.model, (), (), computation.loss.variables)
        parts = parts_of_gradients(candidate.theta, theta, computation.loss)
        return ran(computation.at(torch.float64), parts, borrowed, mode)


def code_of(module: nn.Module) -> object:
    """What runs as the forward of a module, be it of its class or put in its place."""
    forward = module.forward
    return getattr(getattr(forward, "__func__", forward), "__code__", forward)
