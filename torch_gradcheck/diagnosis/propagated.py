"""Explains wrong parameters by the gradient that a culprit gives for its input, and proves it by putting that right.

The right gradient of the input comes from a record of the one call. What is wrong with it is fitted there, where the
error is not mixed yet. Then J's backward runs once more with the fitted error taken away: a parameter whose gradient is
right then was wrong because of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.attribution import Culprit, Suspect
from torch_gradcheck.diagnosis.culprit.corrected_run import corrected_gradients
from torch_gradcheck.diagnosis.culprit.right_gradients import right_gradients
from torch_gradcheck.diagnosis.culprit.sentences import input_name
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.input_errors import InputGradient, InputMistake, input_mistake
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

MOST_CALLS = 32
"""The mistakes of at most 32 calls are fitted: deeper models repeat the same mistake."""

MOST_MISTAKES = 4
"""Up to 4 different mistakes are put right one by one, to tell which parameter each of them spoils."""


class _Fitted(NamedTuple):
    """The mistake in the gradient of one input of one call, and what names it in a sentence."""

    suspect: Suspect
    position: int
    where: str
    mistake: InputMistake

    @property
    def correction(self) -> tuple[tuple[int, int], torch.Tensor]:
        return (self.suspect.number, self.position), torch.from_numpy(-self.mistake.error)

    @property
    def diagnosis(self) -> Diagnosis:
        message = f"the gradient of {self.where} {self.mistake.words}. With that put right, dθ is right"
        return Diagnosis(self.mistake.kind, message, self.mistake.factor)


def propagated(
    problem: Problem, culprit: Culprit, evidences: Mapping[int, Evidence], unknown: Sequence[int]
) -> dict[int, Diagnosis]:
    """Diagnoses of parameters that are wrong because a culprit gives a wrong gradient for its input, where proven.

    Args:
        problem: J and θ, the model lent.
        culprit: with the calls that are suspected.
        evidences: the gradients on trial beside the right ones, by position in θ.
        unknown: positions of those that no kind explains.
    """
    if not unknown or not culprit.suspects or problem.objective.dtype != torch.float64 or problem.objective.held:
        return {}
    try:
        fitted = _fitted(problem, culprit.suspects[:MOST_CALLS])
        return _proven(problem, fitted, {position: evidences[position] for position in unknown})
    except Exception:  # whatever J or a call raises here, the verdict on the gradients stands
        return {}


def _proven(problem: Problem, fitted: Sequence[_Fitted], evidences: Mapping[int, Evidence]) -> dict[int, Diagnosis]:
    groups: dict[tuple[str, DiagnosisKind], list[_Fitted]] = {}
    for each in fitted:
        groups.setdefault((each.where, each.mistake.kind), []).append(each)
    found: dict[int, Diagnosis] = {}
    for group in [*list(groups.values())[:MOST_MISTAKES], *([list(fitted)] if len(groups) > 1 else [])]:
        left = {position: evidence for position, evidence in evidences.items() if position not in found}
        if left and group:
            found |= dict.fromkeys(_right_after(problem, group, left), _together(group))
    return found


def _together(group: Sequence[_Fitted]) -> Diagnosis:
    """The diagnosis of mistakes that only together explain a parameter: of one kind, or PROPAGATED."""
    kinds = dict.fromkeys((each.where, each.mistake.kind) for each in group)
    if len(kinds) == 1:
        return group[0].diagnosis
    firsts = [next(each for each in group if (each.where, each.mistake.kind) == key) for key in kinds]
    sentences = [f"the gradient of {each.where} {each.mistake.words}" for each in firsts]
    kind = firsts[0].mistake.kind if len({each.mistake.kind for each in group}) == 1 else DiagnosisKind.PROPAGATED
    return Diagnosis(kind, f"{'; '.join(sentences)}. With all of it put right, dθ is right")


def _right_after(problem: Problem, group: Iterable[_Fitted], evidences: Mapping[int, Evidence]) -> list[int]:
    """The positions whose gradients are right once these mistakes are put right."""
    corrected = corrected_gradients(problem, dict(each.correction for each in group))
    return [
        position
        for position, evidence in evidences.items()
        if position in corrected and _explains(evidence, corrected[position].values)
    ]


def _explains(evidence: Evidence, corrected: Floats) -> bool:
    return evidence.finite and evidence.explains(evidence.numeric + evidence.analytic - corrected)


def _fitted(problem: Problem, suspects: Sequence[Suspect]) -> list[_Fitted]:
    runner = CallRunner(problem.objective, [], 8 * len(suspects), problem.hidden_noise)
    found: list[_Fitted] = []
    for suspect in suspects:
        try:
            found += _mistakes_of(runner, suspect)
        except (Untraceable, CannotBeRunAlone):  # its parameters stay unknown
            continue
    return found


def _mistakes_of(runner: CallRunner, suspect: Suspect) -> list[_Fitted]:
    call = suspect.call
    if not call.receives or not call.tapped:
        return []
    right = right_gradients(runner, call, call.cotangents)
    numbers = _numbers(runner, suspect, right)
    fitted = [(k, input_mistake(each)) for k, each in numbers.items()]
    return [_Fitted(suspect, k, _where(suspect, k), found) for k, found in fitted if found is not None]


def _numbers(runner: CallRunner, suspect: Suspect, right: Mapping[int, torch.Tensor]) -> dict[int, InputGradient]:
    """The gradients of all tapped inputs, with the tensors of their shape that the call has to do with."""
    call = suspect.call
    outputs, _ = runner.outputs_and_gradients(call)
    found: dict[int, InputGradient] = {}
    for k in call.tapped:
        if k in right:
            on_trial = call.returned.get(k, torch.zeros_like(right[k]))
            found[k] = InputGradient(
                _array(on_trial),
                _array(right[k]),
                _array(call.inputs[k]),
                _of_shape("upstream gradient", call.cotangents, right[k]),
                _of_shape("output", outputs, right[k]),
            )
    if len(found) == 1 and len(outputs) == 1 and not all(each.is_right for each in found.values()):
        ((k, only),) = found.items()
        found[k] = replace(only, elementwise=bool(only.upstream) and _is_elementwise(runner, suspect, k, only))
    return found


def _is_elementwise(runner: CallRunner, suspect: Suspect, k: int, gradient: InputGradient) -> bool:
    """Whether half of the upstream gradient gives that half of both gradients, the right one and the one on trial."""
    call = suspect.call
    (upstream,) = [each for each in call.cotangents if each is not None]
    mask = torch.from_numpy(np.random.default_rng(0).integers(0, 2, gradient.right.shape).astype(np.float64))
    half = replace(call, cotangents=[upstream * mask], returned={})
    right = right_gradients(runner, half, half.cotangents)[k]
    on_trial = runner.outputs_and_gradients(half)[1][k]
    return all(
        np.allclose(_array(part), whole * mask.numpy(), rtol=1e-9, atol=1e-12 * float(np.max(np.abs(whole))))
        for part, whole in ((right, gradient.right), (right if on_trial is None else on_trial, gradient.on_trial))
    )


def _of_shape(name: str, tensors: Sequence[torch.Tensor | None], like: torch.Tensor) -> dict[str, Floats]:
    """The tensors of the shape of `like`, as arrays by name."""
    fitting = [each for each in tensors if each is not None and each.shape == like.shape and not each.is_complex()]
    names = [f"the {name}"] if len(fitting) == 1 else [f"{name} {k}" for k in range(len(fitting))]
    return {each: _array(tensor) for each, tensor in zip(names, fitting, strict=True)}


def _array(tensor: torch.Tensor) -> Floats:
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return np.asarray(dense.cpu().double().numpy())


def _where(suspect: Suspect, k: int) -> str:
    """An input in words, such as "the input x of layer"."""
    call, module = suspect.call, suspect.name or "the model itself"
    paths = [path for path, tensor in tensors_in(call.arguments) if tensor is call.inputs[k]]
    if isinstance(call.owner, nn.Module) or not paths:
        return (
            f"the input of {module}"
            if len(call.tapped) == 1
            else f"the input at {paths[0] if paths else k} of {module}"
        )
    return f"the input {input_name(call, paths[0])} of {module}"
