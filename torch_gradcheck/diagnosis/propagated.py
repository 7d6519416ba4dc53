"""Explains wrong parameters by the gradient that a culprit gives for its input, and proves it by putting that right.

The right gradient of the input comes from a record of the one call. What is wrong with it is fitted there, where the
error is not mixed yet. Then J's backward runs once more with the fitted error taken away: a parameter whose gradient is
right then was wrong because of it. Calls are put right from the loss upwards, since each of them spoils what arrives at
those before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.attribution import Culprit, Suspect
from torch_gradcheck.diagnosis.culprit.corrected_run import CorrectedRun, Correction, corrected_run
from torch_gradcheck.diagnosis.culprit.input_gradients import input_gradients, where_in_words
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import CLOSE
from torch_gradcheck.diagnosis.kind.input_errors import InputMistake, input_mistake
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.reporting.facts.diagnosis import OF_INPUT, OF_PART

MOST_CALLS = 24
"""So many calls, at most, are recorded to see what is wrong with them."""

MOST_RUNS = 40
"""So many runs of single calls, at most, are made for each suspect."""

MOST_CORRECTIONS = 16
"""Up to 16 mistakes are put right, each by one more run of J and its backward: those nearest to the loss."""

NO_EFFECT = 1e-12
"""A correction that changes a gradient by less than this share of it has nothing to do with it."""


class _Fitted(NamedTuple):
    """The mistake in the gradient of one input of one call, and what names it in a sentence."""

    suspect: Suspect
    position: int
    where: str
    mistake: InputMistake

    @property
    def key(self) -> tuple[int, int]:
        """The place of its correction in a run."""
        return self.suspect.number, self.position

    @property
    def parameter(self) -> torch.Tensor | None:
        """The parameter that the input is; None for what was computed."""
        call = self.suspect.call
        return None if self.position in call.tapped else call.inputs[self.position]

    @property
    def kind(self) -> DiagnosisKind:
        """Of a parameter that it spoils."""
        return self.mistake.kind if self.parameter is None else self.mistake.own_kind or self.mistake.kind

    @property
    def correction(self) -> Correction:
        """What puts it right."""
        arrives = self.position in self.suspect.call.returned
        return Correction(torch.from_numpy(-self.mistake.error), arrives, self.parameter)

    @property
    def code(self) -> tuple[type, int]:
        """What makes the mistake."""
        owner = self.suspect.call.owner
        return type(owner) if isinstance(owner, nn.Module) else owner, self.position

    def is_told_by(self, other: _Fitted) -> bool:
        """Whether one sentence does for both: the same code makes them, in one module, or wherever the words agree."""
        alike = self.kind is other.kind and self.mistake.form == other.mistake.form
        return self.code == other.code and (alike or self.suspect.name == other.suspect.name)


@dataclass
class _Repair:
    """Mistakes put right one after the other.

    Attributes:
        problem: J and θ, the model lent.
        positions: in θ, of the parameters in question.
        run: the run with all corrections so far.
        fitted: the mistakes put right so far.
        spoiled: for each of them, the parameters that it changes.
    """

    problem: Problem
    positions: Sequence[int]
    run: CorrectedRun
    fitted: list[_Fitted] = field(default_factory=list)
    spoiled: list[set[int]] = field(default_factory=list)

    def put_right(self, mistake: _Fitted) -> None:
        """One more correction: one more run."""
        self.fitted.append(mistake)
        before = self.run.gradients
        self.run = corrected_run(self.problem, {each.key: each.correction for each in self.fitted})
        self.spoiled.append({k for k in self.positions if _differ(before[k].values, self.run.gradients[k].values)})

    def of(self, position: int) -> list[_Fitted]:
        """The mistakes that spoil a parameter."""
        return [each for each, spoiled in zip(self.fitted, self.spoiled, strict=True) if position in spoiled]


def _differ(one: Floats, other: Floats) -> bool:
    return bool(np.linalg.norm(one - other) > NO_EFFECT * np.linalg.norm(other))


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
    objective = problem.objective
    if not unknown or not culprit.suspects or objective.dtype != torch.float64 or objective.held is not None:
        return {}
    everywhere = sorted([*culprit.suspects, *culprit.functions], key=lambda each: each.number)
    found = _proven(problem, culprit.suspects, evidences, unknown)
    left = [k for k in unknown if k not in found]
    return found | (_proven(problem, everywhere, evidences, left) if left and culprit.functions else {})


def _proven(
    problem: Problem, suspects: Sequence[Suspect], evidences: Mapping[int, Evidence], unknown: Sequence[int]
) -> dict[int, Diagnosis]:
    """Diagnoses of those parameters whose gradients are right when the mistakes of these calls are put right."""
    try:
        repair = _repaired(problem, suspects[-MOST_CALLS:], unknown)
    except Exception:  # whatever J or a call raises here, the verdict on the gradients stands
        return {}
    proven = [k for k in unknown if _is_right_now(evidences[k], repair, k)]
    return {position: _diagnosis(fitted) for position in proven if (fitted := repair.of(position))}


def _repaired(problem: Problem, suspects: Sequence[Suspect], positions: Sequence[int]) -> _Repair:
    """J's backward with the mistakes of all suspects put right, as far as they are known, the last one first."""
    runner = CallRunner(problem.objective, [], MOST_RUNS * len(suspects), problem.hidden_noise)
    repair = _Repair(problem, positions, corrected_run(problem, {}))
    for suspect in reversed(suspects):
        now = suspect._replace(call=repair.run.calls[suspect.number])
        try:
            mistakes = _mistakes_of(runner, now, [problem.theta[k].parameter for k in positions])
        except (Untraceable, CannotBeRunAlone):  # what it spoils stays unknown
            continue
        for mistake in mistakes[: MOST_CORRECTIONS - len(repair.fitted)]:
            repair.put_right(mistake)
    return repair


def _is_right_now(evidence: Evidence, repair: _Repair, position: int) -> bool:
    """Whether the corrections explain all that is wrong with the gradient on trial."""
    if not evidence.finite:
        return False
    return evidence.explains(evidence.numeric + evidence.analytic - repair.run.gradients[position].values)


def _diagnosis(fitted: Sequence[_Fitted]) -> Diagnosis:
    """The diagnosis of a parameter that these mistakes spoil: of one kind, or PROPAGATED."""
    firsts: list[_Fitted] = []
    for each in fitted:
        firsts += [] if any(each.is_told_by(other) for other in firsts) else [each]
    sentences = [
        f"{OF_INPUT if each.parameter is None else OF_PART}{each.where} {each.mistake.words}" for each in firsts
    ]
    kinds = {each.kind for each in firsts}
    more = len(fitted) - len(firsts)
    alike = {(each.code, each.mistake.form) for each in fitted} == {(each.code, each.mistake.form) for each in firsts}
    again = f" (and {'likewise' if alike else 'is wrong'} in {more} more call{'s' * (more > 1)})" if more else ""
    return Diagnosis(
        kinds.pop() if len(kinds) == 1 else DiagnosisKind.PROPAGATED,
        f"{'; '.join(sentences)}{again}. With that put right, dθ is right",
        _factor([each.mistake for each in fitted]) if len(firsts) == 1 else None,
    )


def _factor(mistakes: Sequence[InputMistake]) -> float | None:
    """The factor that all of them have; None without one."""
    first = mistakes[0].factor
    known = [each.factor for each in mistakes if each.factor is not None]
    alike = first is not None and np.allclose(known, first, rtol=CLOSE, atol=0)
    return first if alike and len(known) == len(mistakes) else None


def _mistakes_of(runner: CallRunner, suspect: Suspect, parameters: Sequence[torch.Tensor]) -> list[_Fitted]:
    fitted = [(k, input_mistake(each)) for k, each in input_gradients(runner, suspect, parameters).items()]
    return [_Fitted(suspect, k, where_in_words(suspect, k), found) for k, found in fitted if found is not None]
