"""J's backward with the mistakes in single calls put right: each gives c more for its input x.

Where a gradient arrives at x, a hook adds c to it; where none does, and where x is a parameter, the loss gets the term
⟨c, x⟩. What the upstream parameters get more is linear in c, so the effect of each correction is known by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from torch_gradcheck.diagnosis.culprit.call_recording import GradientTaps, Recording
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.precision.dtypes import epsilon


class Correction(NamedTuple):
    """What is added to the gradient of an input, whether one arrives there without it, and the parameter that it is."""

    added: torch.Tensor
    arrives: bool
    parameter: torch.Tensor | None = None


Corrections = Mapping[tuple[int, int], Correction]
"""By the number of the call in the run, and the position of the input among its tensors."""


class CorrectedRun(NamedTuple):
    """Autograd's gradients by position in θ, and the calls of the run with the gradients that arrived at them."""

    gradients: dict[int, AnalyticGradient]
    calls: list[RecordedCall]


def corrected_run(problem: Problem, corrections: Corrections) -> CorrectedRun:
    """One evaluation of J and its backward with these corrections, recorded."""
    objective = problem.objective
    recording = _Correcting(problem, corrections)
    given = [(each.added, each.parameter) for each in corrections.values()]

    def compute() -> torch.Tensor:
        loss = objective.compute()
        terms = [*recording.terms, *[added * parameter for added, parameter in given if parameter is not None]]
        return torch.stack([loss, *[term.sum() for term in terms]]).sum() if terms else loss

    with torch.enable_grad(), objective.evaluation(at_theta=True), recording:
        gradients = theta_gradients(compute, problem.theta, epsilon(objective.dtype))
    return CorrectedRun(gradients, [call for call in recording.calls if not call.in_backward])


class _Correcting(Recording):
    """Collects the terms ⟨c, x⟩ while J runs."""

    def __init__(self, problem: Problem, corrections: Corrections) -> None:
        super().__init__(lambda: problem.objective.random_state, GradientTaps())
        self._corrections = corrections
        self.terms: list[torch.Tensor] = []

    def _tap_input(self, call: RecordedCall, position: int, copy: torch.Tensor) -> None:
        super()._tap_input(call, position, copy)
        correction = None if call.in_backward else self._corrections.get((call.number, position))
        if correction is not None and correction.arrives:
            copy.register_hook(lambda gradient: gradient + correction.added)
        elif correction is not None:
            self.terms.append(correction.added * copy)
