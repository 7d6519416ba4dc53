"""Explains a wrong gradient by the sum that a Function's backward takes for it, from what the one call has at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.attribution import Suspect
from torch_gradcheck.diagnosis.culprit.input_gradients import as_array, where_in_words
from torch_gradcheck.diagnosis.culprit.right_gradients import right_gradients
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.input_errors import RIGHT
from torch_gradcheck.diagnosis.kind.lost_rows import lost_rows
from torch_gradcheck.diagnosis.kind.sums import wrong_sum
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.reporting.facts import Diagnosis


def wrong_sums(
    problem: Problem, suspects: Sequence[Suspect], evidences: Mapping[int, Evidence], unknown: Sequence[int]
) -> dict[int, Diagnosis]:
    """WRONG_SUM for those of the `unknown` parameters that one call of a Function is given and sums wrongly."""
    found = {position: _of_parameter(problem, suspects, evidences[position], position) for position in unknown}
    return {position: diagnosis for position, diagnosis in found.items() if diagnosis is not None}


def _of_parameter(problem: Problem, suspects: Sequence[Suspect], evidence: Evidence, position: int) -> Diagnosis | None:
    parameter = problem.theta[position].parameter.detach()
    users = [each for each in suspects if not isinstance(each.call.owner, nn.Module) and _is_given(each, parameter)]
    if len(users) != 1:
        return None
    (user,) = users
    upstream = [each for each in user.call.cotangents if each is not None]
    if len(upstream) != 1 or upstream[0].is_complex() or upstream[0].layout is not torch.strided:
        return None
    arrived, factors = as_array(upstream[0]), _factors(user, upstream[0])
    found = wrong_sum(evidence, arrived, factors) or lost_rows(evidence, arrived, factors)
    return None if found is None or _is_right(problem, user, parameter, evidence.analytic) else found


def _is_right(problem: Problem, user: Suspect, parameter: torch.Tensor, on_trial: Floats) -> bool:
    """Whether the call gives the right gradient for what arrives at it, so that the mistake is further downstream.

    Where that cannot be told, it counts as right.
    """
    runner = CallRunner(problem.objective, [], 1, problem.hidden_noise)
    k = next(k for k, each in enumerate(user.call.inputs) if _is_same(each, parameter))
    try:
        right = as_array(right_gradients(runner, user.call, user.call.cotangents)[k]).ravel()
    except (Untraceable, CannotBeRunAlone, KeyError):
        return True
    return bool(np.linalg.norm(right - on_trial) <= RIGHT * np.linalg.norm(right))


def _is_given(suspect: Suspect, parameter: torch.Tensor) -> bool:
    return any(_is_same(each, parameter) for each in suspect.call.inputs)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _factors(suspect: Suspect, like: torch.Tensor) -> dict[str, Floats]:
    """The inputs of the call that have the shape of its upstream gradient but for the last axis, by name."""
    inputs = [(k, each) for k, each in enumerate(suspect.call.inputs) if each.dtype == like.dtype]
    fitting = [(k, each) for k, each in inputs if like.ndim and each.ndim and each.shape[:-1] == like.shape[:-1]]
    return {where_in_words(suspect, k): as_array(each) for k, each in fitting}
