"""J's gradient with the mistakes in single calls put right: the gradient of J plus Σ ⟨c, x⟩ over inputs x of calls.

The upstream parameters get what they would have got if the backward of that call had given c more for x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_gradcheck.diagnosis.culprit.call_recording import GradientTaps, RecordedCall, Recording
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.precision.dtypes import epsilon

Corrections = Mapping[tuple[int, int], torch.Tensor]
"""What is added to the gradient of an input: by the number of the call in the run, and the position of the input."""


def corrected_gradients(problem: Problem, corrections: Corrections) -> dict[int, AnalyticGradient]:
    """Autograd's gradients with these corrections, by position in θ; one evaluation of J and its backward."""
    objective = problem.objective
    recording = _Correcting(problem, corrections)

    def compute() -> torch.Tensor:
        loss = objective.compute()
        return loss + sum(term.to(loss.dtype) for term in recording.terms)

    with torch.enable_grad(), objective.evaluation(at_theta=True), recording:
        return theta_gradients(compute, problem.theta, epsilon(objective.dtype))


class _Correcting(Recording):
    """Collects the terms ⟨c, x⟩ while J runs."""

    def __init__(self, problem: Problem, corrections: Corrections) -> None:
        taps = GradientTaps(outputs=False, rooted=False)
        super().__init__(lambda: problem.objective.random_state, taps)
        self._corrections = corrections
        self.terms: list[torch.Tensor] = []

    def _tap_input(self, call: RecordedCall, position: int, copy: torch.Tensor) -> None:
        number = sum(not each.in_backward for each in self.calls) - 1
        if (correction := self._corrections.get((number, position))) is not None and not call.in_backward:
            self.terms.append((correction * copy).sum())
