"""The mistake behind a `.grad` that is wrong: tried by the gradients of other batches, of each batch, of each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Loan, Start
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.errors import GradcheckError
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.request import Request
from torch_gradcheck.training_step.diagnosis import Reference, diagnosed, step_evidence
from torch_gradcheck.training_step.judge import Judged
from torch_gradcheck.training_step.other_inputs import other_inputs, seen_loss
from torch_gradcheck.training_step.ranks.grads import GradsOfRanks, held_on_some
from torch_gradcheck.training_step.ranks.shard_clipping import clipped_by_shards
from torch_gradcheck.training_step.ranks.unreduced import WAITING, unreduced
from torch_gradcheck.training_step.ranks.window import WindowOfRanks
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.training_step.window import window_mistake
from torch_gradcheck.verdicts.trial import ParameterTrial

OTHER_INPUTS = "the forward of this step saw other inputs than the batch given to step()"
"""How the note on a batch that is not the step's begins."""

AT_LIMIT = 1e-3
"""The relative distance within which a norm is at the limit that it is clipped to."""

LARGEST_WINDOW = 64
"""The largest number of batches whose gradients are told apart after a mismatch."""


class Mistakes:
    """Names the mistakes in `.grad`; evaluates other Js than that of the step, where that helps.

    Args:
        model: what was trained.
        request: the options.
        step: what is known of the training step.
        theta: the caller's own parameters, and tensors of the batch.
        of_ranks: the `.grad` of the ranks, where they are not the same.
        drawn_in: the precisions the step drew its random numbers in.

    Attributes:
        saw_other_inputs: the note on inputs of the step's forward that are not those of its batch; "" without.
    """

    def __init__(
        self,
        model: nn.Module,
        request: Request,
        step: TrainingStep,
        theta: Theta,
        of_ranks: GradsOfRanks,
        drawn_in: DrawnIn | None,
    ) -> None:
        self._model, self._request, self._step, self._theta = model, request, step, theta
        self._of_ranks, self._drawn_in = of_ranks, drawn_in
        self._gradients_of_batches: list[dict[int, Floats]] | None = None
        self.saw_other_inputs = ""

    def named(self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]) -> dict[int, Diagnosis]:
        """The kind of mistake of every wrong `.grad`, by position in θ, and the rank that it is of."""
        found = self._named(judged, trials)
        return found | {at: self._of_ranks.on_its_rank(at, found[at]) for at in self._of_ranks.differing if at in found}

    def _named(self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]) -> dict[int, Diagnosis]:
        previous = self._gradients_of(self._step.previous)
        found = self._diagnosed(judged, trials, [Reference("the gradient of the batch before", previous)])
        found |= self._unreduced(judged) | self._waiting(judged) | self._clipped_by_shards(judged, trials)
        if all(diagnosis.kind.is_of_the_whole_gradient for diagnosis in found.values()):
            return found
        found |= self._weighted(judged)
        if not any(diagnosis.kind is DiagnosisKind.UNKNOWN for diagnosis in found.values()):
            return found
        return found | self._of_other_inputs(judged, trials, found)

    def of_the_step(self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]) -> dict[int, Diagnosis]:
        """The same by what is known without another J."""
        return self._diagnosed(judged, trials, [])

    def _diagnosed(
        self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial], more: Sequence[Reference]
    ) -> dict[int, Diagnosis]:
        earlier = {
            position: self._step.earlier[self._theta[position].parameter]
            for position in judged
            if self._theta[position].parameter in self._step.earlier
        }
        references = [Reference("what .grad held after the step before", earlier), *more]
        if isinstance(self._step.window, WindowOfRanks):
            references += held_on_some(earlier, self._step.window.world)
        tried = {position: each.trial for position, each in judged.items()}
        at_entries = [Reference(each.words, _at_entries(each.values, tried)) for each in references]
        unclipped = {position: trial.results.numeric for position, trial in trials.items()}
        return diagnosed(self._theta, tried, at_entries, self._step, unclipped)

    def _weighted(self, judged: Mapping[int, Judged]) -> dict[int, Diagnosis]:
        """The mistake in the weights of the window's batches, by position in θ."""
        window, parts = self._step.window, self._parts(judged)
        if window is None or not parts:
            return {}
        return window_mistake(self._evidences(judged), window, parts, scaled=self._may_be_clipped(judged))

    def _unreduced(self, judged: Mapping[int, Judged]) -> dict[int, Diagnosis]:
        """The mistake that the ranks have not averaged their gradients, by position in θ."""
        window, differing = self._step.window, [at for at in self._of_ranks.differing if at in judged]
        parts = self._parts(judged) if differing else []
        if not isinstance(window, WindowOfRanks) or not parts:
            return {}
        held = {at: self._of_ranks.at(at, judged[at].trial) for at in differing}
        return unreduced(self._evidences(judged), held, window, parts)

    def _waiting(self, judged: Mapping[int, Judged]) -> dict[int, Diagnosis]:
        """What FSDP2 has not reduced yet, by position in θ."""
        names = self._step.waiting
        waiting = [at for at in judged if self._theta[at].name in names and not judged[at].trial.reached]
        return dict.fromkeys(waiting, Diagnosis(DiagnosisKind.UNREDUCED, WAITING))

    def _clipped_by_shards(
        self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]
    ) -> dict[int, Diagnosis]:
        """The mistake that each rank has clipped its own shards, by position in θ."""
        known = self._step.shards
        shards = {at: known[self._theta[at].name] for at in judged if self._theta[at].name in known}
        if not shards:
            return {}
        unclipped = {position: trial.results.numeric for position, trial in trials.items()}
        return clipped_by_shards(self._evidences(judged), unclipped, shards)

    def _evidences(self, judged: Mapping[int, Judged]) -> dict[int, Evidence]:
        return {position: step_evidence(self._theta[position], each.trial) for position, each in judged.items()}

    def _parts(self, judged: Mapping[int, Judged]) -> list[dict[int, Floats]]:
        """The gradient of each batch of the window, by position in θ, at the entries tried; nothing where unknown."""
        window, tried = self._step.window, {position: each.trial for position, each in judged.items()}
        if window is None or not 1 < len(window.losses) <= LARGEST_WINDOW or self._step.clip_value is not None:
            return []
        parts = [_at_entries(part, tried) for part in self.gradients_by_batch()]
        return [] if any(len(part) < len(tried) for part in parts) else parts

    def gradients_by_batch(self) -> Sequence[Mapping[int, Floats]]:
        """The gradient of each batch of the window in float64, by position in θ."""
        window = self._step.window
        if self._gradients_of_batches is None and window is not None:
            seen = self._step.forwards if self._step.start is not None else None
            starts: Sequence[Start | None] = [each.start for each in seen] if seen else [None] * len(window.losses)
            self._gradients_of_batches = [
                self._gradients_of(loss, start) for loss, start in zip(window.losses, starts, strict=True)
            ]
        return self._gradients_of_batches or []

    def _may_be_clipped(self, judged: Mapping[int, Judged]) -> bool:
        """Whether clipping may have scaled `.grad`: its norm is at the limit, or that of all is not known."""
        limit = self._step.clip_norm
        if limit is None or self._request.include or self._request.exclude:
            return limit is not None
        given = [each.trial.analytic for each in judged.values()]
        return float(np.linalg.norm(np.concatenate(given))) > (1 - AT_LIMIT) * limit

    def _of_other_inputs(
        self,
        judged: Mapping[int, Judged],
        trials: Mapping[int, ParameterTrial],
        found: Mapping[int, Diagnosis],
    ) -> dict[int, Diagnosis]:
        """What is left unknown, explained by inputs of the step's forward that are not those of its batch.

        So are rows that are a multiple of the right gradient beside others that are not: of two numbers whose sum is 0,
        as in the last bias before a softmax of two classes, any gradient is a multiple of any other.
        """
        words = self._other_inputs()
        if not words:
            return {}
        self.saw_other_inputs = f"{OTHER_INPUTS} ({words})"
        reference = Reference("the gradient of the inputs that the forward of this step saw", self._as_seen())
        again = self._diagnosed(judged, trials, [reference])
        unknown = [position for position, diagnosis in found.items() if diagnosis.kind is DiagnosisKind.UNKNOWN]
        if unknown:
            multiples = (DiagnosisKind.SCALED, DiagnosisKind.SIGN_FLIPPED)
            unknown += [position for position, diagnosis in found.items() if diagnosis.kind in multiples]
        by_inputs = Diagnosis(DiagnosisKind.UNKNOWN, f"{OTHER_INPUTS} ({words}): .grad is of another batch")
        return {at: again[at] if again[at].kind is DiagnosisKind.STALE else by_inputs for at in unknown}

    def _other_inputs(self) -> str:
        """Words on inputs of the step's forwards that are not the batch's; "" where none are known."""
        window, forwards = self._step.window, self._step.forwards
        if window is None or self._step.start is None or not forwards or not all(each.has_inputs for each in forwards):
            return ""
        loss, start = window.mean([forward.start for forward in forwards]), self._step.start
        try:
            with self._posed(loss, start) as problem:
                return other_inputs(problem.objective, forwards)
        except (RuntimeError, GradcheckError):
            return ""

    def _as_seen(self) -> dict[int, Floats]:
        """The gradient of J over the inputs that the forwards saw; empty where that is not known."""
        return self._gradients_of(seen_loss(self._step), self._step.start)

    def _gradients_of(self, loss: Loss | None, start: Start | None = None) -> dict[int, Floats]:
        """Those of another J, at the present weights; empty where it cannot be evaluated."""
        if loss is None:
            return {}
        try:
            with self._posed(loss, start) as problem:
                gradients = autograd_gradients(problem.objective, self._theta)
        except Exception:  # whatever the caller's loss raises where inputs and targets are not of one batch
            return {}
        return {position: gradient.values for position, gradient in gradients.items()}

    def _posed(self, loss: Loss, start: Start | None) -> Loan[Problem]:
        """The problem of another J, in the mode the step trained in."""
        as_trained, drawn_in = replace(self._request, mode="keep"), None if start is None else self._drawn_in
        return posed(self._model, loss, as_trained, start=start, theta=self._theta, drawn_in=drawn_in)


def _at_entries(gradients: Mapping[int, Floats], tried: Mapping[int, ParameterTrial]) -> dict[int, Floats]:
    """Whole gradients at the entries that were tried."""
    return {position: trial.at(gradients[position]) for position, trial in tried.items() if position in gradients}
