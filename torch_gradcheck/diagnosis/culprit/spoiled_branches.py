"""Tells which calls spoil other branches by writing to the gradient they are given: J's backward, with copies for them.

A backward may write to that gradient where nobody else is given it: then the run with copies has the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from torch_gradcheck.diagnosis.culprit.changed_call import ChangedCall
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import OWN_MISTAKE
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.precision.dtypes import epsilon

MOST_TRIED = 4
"""So many calls, at most, are given copies, one evaluation of J each."""


def spoiling(problem: Problem, calls: Sequence[RecordedCall], wrong: WrongCoordinate) -> list[RecordedCall]:
    """Those of the calls that change the wrong gradient by what they write to theirs.

    Args:
        problem: J and θ, the model lent.
        calls: whose backwards write to the gradients they are given.
        wrong: the coordinate that is followed.
    """
    return [call for call in calls[:MOST_TRIED] if _differs(_with_copies(problem, call, wrong), wrong)]


def _differs(gradient: float, wrong: WrongCoordinate) -> bool:
    if not math.isfinite(wrong.analytic):
        return math.isfinite(gradient)
    return abs(gradient - wrong.analytic) > OWN_MISTAKE * abs(wrong.error)


def _with_copies(problem: Problem, call: RecordedCall, wrong: WrongCoordinate) -> float:
    """The gradient of the coordinate where the backward of the call is given copies."""
    objective = problem.objective
    position = next(k for k, entry in enumerate(problem.theta) if entry is wrong.entry)
    changed = ChangedCall(objective, call.number, of_outputs=_copying)
    with torch.enable_grad(), objective.evaluation(at_theta=True), objective.without_its_steps(), changed:
        found = theta_gradients(objective.compute, problem.theta, epsilon(objective.dtype), [position])
    return float(found[position].values[wrong.coordinate])


def _copying(_: int, output: torch.Tensor) -> torch.Tensor:
    """A copy of an output whose backward hands on a copy of its gradient."""
    if not output.requires_grad:
        return output
    copy = output.clone()
    copy.register_hook(lambda gradient: gradient.clone())
    return copy
