"""Recognises gradients made from what another call of the same module saved: it is called several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.attribution import Suspect
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.right_gradients import right_gradient_of
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

MOST_CALLS = 16
"""Modules that are called more often are not tried."""

Calls = list[RecordedCall]

INSTEAD: tuple[tuple[str, Callable[[Calls], Calls]], ...] = (
    ("its last call", lambda calls: [calls[-1]] * len(calls)),
    ("its first call", lambda calls: [calls[0]] * len(calls)),
    ("the call before", lambda calls: [calls[0], *calls[:-1]]),
    ("the call after", lambda calls: [*calls[1:], calls[-1]]),
)
"""Whose inputs the backward of each call may take instead of its own, with words."""


def stale_calls(
    problem: Problem, suspects: Sequence[Suspect], evidences: Mapping[int, Evidence], unknown: Sequence[int]
) -> dict[int, Diagnosis]:
    """STALE for those of the `unknown` parameters whose gradients the inputs of another call explain."""
    found: dict[int, Diagnosis] = {}
    if problem.objective.dtype != torch.float64 or problem.objective.held is not None:
        return found
    for module in dict.fromkeys(each.call.owner for each in suspects if isinstance(each.call.owner, nn.Module)):
        calls = [each.call for each in suspects if each.call.owner is module and each.call.receives]
        if 1 < len(calls) <= MOST_CALLS:
            name = next(each.name for each in suspects if each.call.owner is module)
            held = {id(parameter) for parameter in module.parameters()}
            mine = [k for k in unknown if id(problem.theta[k].parameter) in held and evidences[k].finite]
            found |= {k: told for k in mine if (told := _told(problem, calls, k, evidences[k], name)) is not None}
    return found


def _told(problem: Problem, calls: Calls, position: int, evidence: Evidence, name: str) -> Diagnosis | None:
    runner = CallRunner(problem.objective, [], 8 * MOST_CALLS, problem.hidden_noise)
    parameter = problem.theta[position].parameter
    own = _given(parameter, runner, calls, calls)
    if own is None or evidence.explains(own):  # its backward is right: what arrives there is not
        return None
    for words, instead in INSTEAD:
        values = _given(parameter, runner, calls, instead(calls))
        if values is not None and evidence.explains(values):
            message = (
                f"dθ is what {name or 'the model itself'}, called {len(calls)} times, gives for the inputs of {words} "
                "in place of its own: what the backward has saved is stale"
            )
            return Diagnosis(DiagnosisKind.STALE, message)
    return None


def _given(parameter: torch.Tensor, runner: CallRunner, calls: Calls, inputs_of: Calls) -> Floats | None:
    """The right gradient of the parameter where each call has the inputs of another one; None if it is not known."""
    try:
        values = [right_gradient_of(parameter, runner, *each) for each in zip(calls, inputs_of, strict=True)]
    except (Untraceable, CannotBeRunAlone, RuntimeError):  # of other shapes, say
        return None
    return _sum(values)


def _sum(gradients: Sequence[torch.Tensor]) -> Floats:
    return np.asarray(torch.stack(list(gradients)).sum(0).detach().double().numpy().ravel())
