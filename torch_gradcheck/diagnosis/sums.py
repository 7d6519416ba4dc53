"""Explains a wrong vector by the sum that a Function's backward takes for it, from what the one call has at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.attribution import Suspect
from torch_gradcheck.diagnosis.culprit.input_gradients import as_array, where_in_words
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.sums import wrong_sum
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.reporting.facts import Diagnosis


def wrong_sums(
    theta: Theta, suspects: Sequence[Suspect], evidences: Mapping[int, Evidence], unknown: Sequence[int]
) -> dict[int, Diagnosis]:
    """WRONG_SUM for those of the `unknown` parameters that one call of a Function is given and sums wrongly."""
    found = {position: _of_parameter(theta, suspects, evidences[position], position) for position in unknown}
    return {position: diagnosis for position, diagnosis in found.items() if diagnosis is not None}


def _of_parameter(theta: Theta, suspects: Sequence[Suspect], evidence: Evidence, position: int) -> Diagnosis | None:
    parameter = theta[position].parameter.detach()
    users = [each for each in suspects if not isinstance(each.call.owner, nn.Module) and _is_given(each, parameter)]
    if len(users) != 1:
        return None
    (user,) = users
    upstream = [each for each in user.call.cotangents if each is not None]
    if len(upstream) != 1 or upstream[0].is_complex() or upstream[0].layout is not torch.strided:
        return None
    return wrong_sum(evidence, as_array(upstream[0]), _factors(user, upstream[0]))


def _is_given(suspect: Suspect, parameter: torch.Tensor) -> bool:
    return any(each.shape == parameter.shape and torch.equal(each, parameter) for each in suspect.call.inputs)


def _factors(suspect: Suspect, like: torch.Tensor) -> dict[str, Floats]:
    """The inputs of the call that have the shape of its upstream gradient, by name."""
    inputs = list(enumerate(suspect.call.inputs))
    fitting = [(k, each) for k, each in inputs if each.shape == like.shape and each.dtype == like.dtype]
    return {where_in_words(suspect, k): as_array(each) for k, each in fitting}
