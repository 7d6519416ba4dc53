"""Finds the operations that make the first gradients that are not finite, from one more evaluation of J."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.diagnosis.non_finite.operations import OperationRecording
from torch_gradcheck.diagnosis.non_finite.sentences import Sentences
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.precision.dtypes import epsilon


@dataclass(frozen=True)
class NonFinite:
    """What makes gradients NaN or infinite.

    Attributes:
        culprit: the module that the operation is in; `"loss_fn"` for the loss function or closure; None where no
            operation of J is to blame.
        notes: sentences on it.
        place: where in the code it is, see `Facts.place`.
    """

    culprit: str | None
    notes: tuple[str, ...]
    place: str = ""


def find_non_finite(problem: Problem) -> NonFinite | None:
    """What makes autograd's gradients of J NaN or infinite; None where they are finite, or it cannot be told.

    Nothing is said of a hook on a parameter: what arrives there is finite.

    Args:
        problem: J and θ, the model lent.
    """
    try:
        recording, gradients = _recorded(problem)
    except Exception:  # whatever a recorded run raises, the verdict on the gradients stands
        return None
    spoilt = {k: each for k, each in gradients.items() if not np.isfinite(each.values).all()}
    if not spoilt or not recording.origins:
        return None
    sentences = Sentences(problem.objective.model, recording, problem.objective.words)
    notes = (*sentences.all(), sentences.on_parameters(problem.theta, spoilt))
    return NonFinite(sentences.culprit, notes, sentences.place)


def _recorded(problem: Problem) -> tuple[OperationRecording, Mapping[int, AnalyticGradient]]:
    """One run of J and its backward, recorded, and the gradients that it gives."""
    objective = problem.objective
    noted: list[OperationRecording] = []

    def at_output(name: str, tensors: list[torch.Tensor]) -> None:
        for recording in noted:
            recording.note(tensors, None, name)  # of Functions: no function mode sees where they are applied

    with torch.enable_grad(), forward_hooks(objective.model, at_output) as modules, objective.evaluation():
        recording = OperationRecording(modules, _recorded.__code__)
        noted.append(recording)
        with recording:
            return recording, theta_gradients(objective.compute, problem.theta, epsilon(objective.dtype))
