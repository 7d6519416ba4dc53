"""`.grad` on trial, as a training step left it: compared with the right gradient, allowing for what rounding does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.errors import GradcheckError, InvalidRequestError
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.gradients.left_in_grad import left_gradients, on_missing_grad, theta_in_grad
from torch_gradcheck.methods.problem import posed
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import flat_values
from torch_gradcheck.precision.dtypes import epsilon, name_of
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, ParameterReport, Role
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.modules import is_compiled
from torch_gradcheck.training_step.clipping import Clipping
from torch_gradcheck.training_step.diagnosis import Reference, diagnosed, step_evidence
from torch_gradcheck.training_step.error_bars import Bars, KernelGradients, bars_of
from torch_gradcheck.training_step.grad_before import GradBefore
from torch_gradcheck.training_step.judge import Judged, NoiseOfRerun, judge, judge_by_rerun
from torch_gradcheck.training_step.other_inputs import other_inputs, seen_loss
from torch_gradcheck.training_step.ranks.grads import GradsOfRanks, Left, held_on_some
from torch_gradcheck.training_step.ranks.reduction import Reduction
from torch_gradcheck.training_step.ranks.shard_clipping import clipped_by_shards
from torch_gradcheck.training_step.ranks.unreduced import WAITING, unreduced
from torch_gradcheck.training_step.ranks.window import WindowOfRanks
from torch_gradcheck.training_step.regimes import replays_in_regimes
from torch_gradcheck.training_step.replay import Replays, coarsest
from torch_gradcheck.training_step.reproduced import judged_by_rerun
from torch_gradcheck.training_step.rows import accumulated_maybe, hidden_share, judged_row, unjudged_row
from torch_gradcheck.training_step.same_function import compared_with_step
from torch_gradcheck.training_step.step import TrainingStep, taken_in_backward
from torch_gradcheck.training_step.window import window_mistake
from torch_gradcheck.verdicts.rows import frozen_row
from torch_gradcheck.verdicts.trial import ParameterTrial

ON_TRIAL = "on trial is what .grad holds"
"""How the note on what was judged begins."""

OTHER_INPUTS = "the forward of this step saw other inputs than the batch given to step()"
"""How the note on a batch that is not the step's begins."""

AT_LIMIT = 1e-3
"""The relative distance within which a norm is at the limit that it is clipped to."""

LARGEST_WINDOW = 64
"""The largest number of batches whose gradients are told apart after a mismatch."""


class GradCheck:
    """Reads `.grad` and runs the step again in its own precision, before the model is lent; judges while it is.

    Args:
        model: what was trained, not lent yet.
        loss: the user's loss over it, on the batches of the step.
        request: the options.
        step: what is known of the training step.

    Attributes:
        theta: the caller's own parameters, and the tensors of the batch that have a `.grad`.
        left: what `.grad` holds, by position in θ.
        why_unjudged: why nothing can be said about `.grad`; "" where something can.
        replays: the step run again in its own precision; None where it was not.
    """

    def __init__(self, model: nn.Module, loss: Loss, request: Request, step: TrainingStep) -> None:
        self._model, self._request, self._step = model, request, step
        before = GradBefore(loss.variables, step)
        self._may_have_held = before.unknown
        self.theta = theta_in_grad(model, request.include, request.exclude, loss.variables).without(before.held)
        self._not_judged = [note for note in (on_missing_grad(loss.variables), before.note) if note]
        if not len(self.theta):
            raise InvalidRequestError(f"{'; '.join(self._not_judged)}; and nothing else is selected.")
        self.left = left_gradients(self.theta, step.scale, step.loss_scale, step.reduced_in)
        self.why_unjudged = step.weights_moved() or ("" if step.forwards else taken_in_backward(self.theta))
        self._missing: set[int] = set()
        self._saw_other_inputs = ""
        self._hides = 0.0
        self._gradients_of_batches: list[dict[int, Floats]] | None = None
        self._default = torch.get_default_dtype()
        self.replays: Replays | None = None
        self._in_other_regimes: list[Replays] = []
        self._of_ranks = GradsOfRanks(request.team, self.theta, self.left)
        if not self.why_unjudged and request.team.leads:  # the others do not judge
            self.replays, self._in_other_regimes = replays_in_regimes(
                model, loss, self.theta, request.seed, step, self.left
            )

    @property
    def drawn_in(self) -> DrawnIn | None:
        """The precisions the step drew its random numbers in."""
        computed_in = self._step.computed_in or coarsest(self.theta)
        return None if self._step.start is None else DrawnIn(self._default, computed_in)

    def compare_with_step(self, objective: Objective, autograd_float64: Mapping[int, AnalyticGradient]) -> None:
        """Finds out whether J is the function that the step computed; `why_unjudged` says why not."""
        if not self.why_unjudged:
            self.why_unjudged, self._missing = compared_with_step(
                objective, self.theta, self._step, self.left, autograd_float64, self.replays
            )

    def judged(
        self,
        objective: Objective,
        autograd_float64: Mapping[int, AnalyticGradient],
        trials: Mapping[int, ParameterTrial],
    ) -> dict[int, Judged]:
        """Every `.grad` beside the right gradient, by position in θ; nothing where it cannot be judged.

        Where the ranks do not hold the same, it is the leader's, or that of a rank where only it is wrong.
        """
        if self.why_unjudged:
            return {}
        own = self.left

        def of_another_rank(left: Left) -> Mapping[int, Judged]:
            self.left = {**own, **left}
            return self._judged_by(self.replays, objective, autograd_float64, trials)

        judged = self._of_ranks.worst(self._judged_here(objective, autograd_float64, trials), of_another_rank)
        self.left = own | {at: self._of_ranks.of_rank[rank][at] for at, rank in self._of_ranks.shown_on.items()}
        return judged

    def _judged_here(
        self,
        objective: Objective,
        autograd_float64: Mapping[int, AnalyticGradient],
        trials: Mapping[int, ParameterTrial],
    ) -> dict[int, Judged]:
        """The leader's own, in the regime that explains most of it."""
        judged = self._judged_by(self.replays, objective, autograd_float64, trials)
        if not self._in_other_regimes or 2 * _wrong(judged) < len(judged):
            return judged
        found = self._diagnosed(judged, trials, [])
        if 2 * sum(diagnosis.kind.is_of_the_whole_gradient for diagnosis in found.values()) >= len(found):
            return judged  # a plain mistake to the last digits: no rounding does that
        for replays in self._in_other_regimes:
            other = self._judged_by(replays, objective, autograd_float64, trials)
            if _wrong(other) < _wrong(judged):
                self.replays, judged = replays, other
        return judged

    def _judged_by(
        self,
        replays: Replays | None,
        objective: Objective,
        autograd_float64: Mapping[int, AnalyticGradient],
        trials: Mapping[int, ParameterTrial],
    ) -> dict[int, Judged]:
        """Every `.grad`, with the error bars that these replays give."""
        dtype = coarsest(self.theta, replays.regime if replays else None)
        kernels = KernelGradients(objective, self.theta, dtype, self._request.seed)
        inputs = [position for position, entry in enumerate(self.theta) if entry.role is not Role.PARAMETER]
        clipping = Clipping(self._step, not (self._request.include or self._request.exclude), inputs)
        given = {position: self.left[position].values[trial.coordinates] for position, trial in trials.items()}
        expected, fraction = clipping.of_right({at: trial.results.numeric for at, trial in trials.items()}, given)
        replayed = {
            position: [run[trial.coordinates] for run in replays.gradients[position]] if replays else []
            for position, trial in trials.items()
        }
        plain = {position: np.nan_to_num(runs[0]) for position, runs in replayed.items() if runs}
        fraction_of_replay = clipping.fraction(plain, given) if plain else fraction
        judged = {}
        for position, trial in trials.items():
            runs = replayed[position]
            exact = autograd_float64[position].values[trial.coordinates]
            left = clipping.of(position, fraction)
            bars = bars_of(runs, exact, partial(kernels.of, position, trial)).times(min(1.0, 2 * left))
            right = replace(trial.results, numeric=expected[position], error_bar=trial.results.error_bar * left)
            on_trial = replace(trial, analytic=given[position], reached=self.left[position].reached, results=right)
            judged[position] = judge(on_trial, bars.and_of(self._of_reduction(position, left)), self._request.tolerance)
            if runs and self._step.clip_value is None:
                left = clipping.of(position, fraction_of_replay)
                judged[position] = self._judged_by_rerun(position, judged[position], runs, left)
        if replays is None or self._step.clip_value is not None or self._is_compiled:
            return judged
        left_of = {position: clipping.of(position, fraction_of_replay) for position in judged}
        rerun = {position: left_of[position] * gradient for position, gradient in plain.items()}
        again = {at: left_of[at] * replays.again[at][trials[at].coordinates] for at in replays.again}
        own = {position: self.left[position].epsilon for position in judged}
        return judged_by_rerun(judged, rerun, again, own, epsilon(dtype), self._request.tolerance)

    def _of_reduction(self, position: int, fraction: float) -> Bars:
        """The error bars of the sum over the ranks, where that rounds coarser than `.grad`; clipped by this factor."""
        window, dtype = self._step.window, self._step.reduced_in
        if dtype is None or not isinstance(window, WindowOfRanks):
            return Bars(0.0, 0.0)
        parts = self._gradients_by_batch()
        if not all(position in part for part in parts):
            return Bars(0.0, 0.0)
        return Reduction(window, parts, dtype).bars(position).times(fraction)

    @property
    def _is_compiled(self) -> bool:
        """Whether the step ran compiled code, which rounds in other places than its rerun does."""
        return self._step.compiled or is_compiled(self._model)

    def _judged_by_rerun(self, position: int, judged: Judged, runs: Sequence[Floats], fraction: float) -> Judged:
        """The same, where the step's plain rerun shows a mistake that rounding would hide."""
        plain, *noisy = runs
        return judge_by_rerun(
            judged,
            fraction * plain,
            NoiseOfRerun.of(plain, noisy, self._rows(position, judged.trial)).times(fraction),
            flat_values(self.theta[position])[judged.trial.coordinates],
            self.left[position].epsilon,
            self._request.tolerance,
        )

    def _rows(self, position: int, trial: ParameterTrial) -> int:
        """The number of rows the entries tried make up: 1 where they are no whole tensor, or one of a single axis."""
        entry = self.theta[position]
        whole = len(trial.coordinates) == entry.coordinates and len(entry.shape) > 1
        return entry.shape[0] if whole and entry.shape[0] else 1

    def rows(self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]) -> list[ParameterReport]:
        """A row for every parameter."""
        diagnoses = self._diagnoses(judged, trials)
        self._hides = max([hidden_share(each) for each in judged.values()], default=0.0)
        rows = []
        for position, entry in enumerate(self.theta):
            if entry.frozen:
                rows.append(frozen_row(entry))
            elif position in judged:
                rows.append(judged_row(entry, judged[position], diagnoses.get(position)))
            else:
                missing = position in self._missing
                rows.append(unjudged_row(entry, self.left[position], self.why_unjudged, missing))
        unknown = {self.theta[at].name for at in self.theta.checked if self._may_have_held(self.theta[at].parameter)}
        return [accumulated_maybe(row) if row.name in unknown else row for row in rows]

    def notes(self, rows: Sequence[ParameterReport]) -> list[str]:
        """The notes on the step, where there is something to say of it, on what was judged, and on the error bars."""
        of_window = "" if self._step.window is None else self._step.window.note
        notes = [note for note in (self._saw_other_inputs, of_window, *self._not_judged) if note]
        notes.append(f"{ON_TRIAL}: {self.why_unjudged or self._precision()}")
        if rows and all(row.diagnosis and row.diagnosis.kind is DiagnosisKind.MISSING for row in rows):
            notes.append("no parameter has a .grad: was zero_grad() called after backward(), or backward() not at all?")
        return notes

    def _precision(self) -> str:
        dtypes = sorted({name_of(entry.own_dtype) for entry in self.theta})
        plain = self.replays is None or self.replays.regime.is_plain
        regime = "" if plain or self.replays is None else f", {self.replays.regime}"
        hides = f", and hide mistakes of up to {self._hides:.0%} of a gradient that matches" if self._hides else ""
        return (
            f"computed in {', '.join(dtypes)}{regime}; the error bars are what rounding there did "
            f"to the same step when it was run again{hides}"
        )

    def _diagnoses(self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]) -> dict[int, Diagnosis]:
        """The kind of mistake of every wrong `.grad`, by position in θ, and the rank that it is of."""
        found = self._diagnosed_all(judged, trials) if _wrong(judged) else {}
        return found | {at: self._of_ranks.on_its_rank(at, found[at]) for at in self._of_ranks.differing if at in found}

    def _diagnosed_all(
        self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]
    ) -> dict[int, Diagnosis]:
        previous = self._gradients_of(self._step.previous)
        found = self._diagnosed(judged, trials, [Reference("the gradient of the batch before", previous)])
        found |= self._unreduced(judged) | self._waiting(judged) | self._clipped_by_shards(judged, trials)
        if all(diagnosis.kind.is_of_the_whole_gradient for diagnosis in found.values()):
            return found
        found |= self._weighted(judged)
        if not any(diagnosis.kind is DiagnosisKind.UNKNOWN for diagnosis in found.values()):
            return found
        return found | self._of_other_inputs(judged, trials, found)

    def _diagnosed(
        self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial], more: Sequence[Reference]
    ) -> dict[int, Diagnosis]:
        earlier = {
            position: self._step.earlier[self.theta[position].parameter]
            for position in judged
            if self.theta[position].parameter in self._step.earlier
        }
        references = [Reference("what .grad held after the step before", earlier), *more]
        if isinstance(self._step.window, WindowOfRanks):
            references += held_on_some(earlier, self._step.window.world)
        tried = {position: each.trial for position, each in judged.items()}
        at_entries = [Reference(each.words, _at_entries(each.values, tried)) for each in references]
        unclipped = {position: trial.results.numeric for position, trial in trials.items()}
        return diagnosed(self.theta, tried, at_entries, self._step, unclipped)

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
        held = {at: self._of_ranks.at(at, judged[at].trial.coordinates) for at in differing}
        return unreduced(self._evidences(judged), held, window, parts)

    def _waiting(self, judged: Mapping[int, Judged]) -> dict[int, Diagnosis]:
        """What FSDP2 has not reduced yet, by position in θ."""
        names = self._step.waiting
        waiting = [at for at in judged if self.theta[at].name in names and not self.left[at].reached]
        return dict.fromkeys(waiting, Diagnosis(DiagnosisKind.UNREDUCED, WAITING))

    def _clipped_by_shards(
        self, judged: Mapping[int, Judged], trials: Mapping[int, ParameterTrial]
    ) -> dict[int, Diagnosis]:
        """The mistake that each rank has clipped its own shards, by position in θ."""
        known = self._step.shards
        shards = {at: known[self.theta[at].name] for at in judged if self.theta[at].name in known}
        if not shards:
            return {}
        unclipped = {position: trial.results.numeric for position, trial in trials.items()}
        return clipped_by_shards(self._evidences(judged), unclipped, shards)

    def _evidences(self, judged: Mapping[int, Judged]) -> dict[int, Evidence]:
        return {position: step_evidence(self.theta[position], each.trial) for position, each in judged.items()}

    def _parts(self, judged: Mapping[int, Judged]) -> list[dict[int, Floats]]:
        """The gradient of each batch of the window, by position in θ, at the entries tried; nothing where unknown."""
        window, tried = self._step.window, {position: each.trial for position, each in judged.items()}
        if window is None or not 1 < len(window.losses) <= LARGEST_WINDOW or self._step.clip_value is not None:
            return []
        parts = [_at_entries(part, tried) for part in self._gradients_by_batch()]
        return [] if any(len(part) < len(tried) for part in parts) else parts

    def _gradients_by_batch(self) -> Sequence[Mapping[int, Floats]]:
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
        """What is left unknown, explained by inputs of the step's forward that are not those of its batch."""
        words = self._other_inputs()
        if not words:
            return {}
        self._saw_other_inputs = f"{OTHER_INPUTS} ({words})"
        reference = Reference("the gradient of the inputs that the forward of this step saw", self._as_seen())
        again = self._diagnosed(judged, trials, [reference])
        unknown = [position for position, diagnosis in found.items() if diagnosis.kind is DiagnosisKind.UNKNOWN]
        by_inputs = Diagnosis(DiagnosisKind.UNKNOWN, f"{OTHER_INPUTS} ({words}): .grad is of another batch")
        return {at: again[at] if again[at].kind is DiagnosisKind.STALE else by_inputs for at in unknown}

    def _other_inputs(self) -> str:
        """Words on inputs of the step's forwards that are not the batch's; "" where none are known."""
        window, forwards = self._step.window, self._step.forwards
        if window is None or self._step.start is None or not forwards or not all(each.has_inputs for each in forwards):
            return ""
        as_trained = replace(self._request, mode="keep")
        loss, start = window.mean([forward.start for forward in forwards]), self._step.start
        try:
            with posed(self._model, loss, as_trained, start=start, theta=self.theta, drawn_in=self.drawn_in) as problem:
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
        as_trained = replace(self._request, mode="keep")
        drawn_in = None if start is None else self.drawn_in
        try:
            with posed(self._model, loss, as_trained, start=start, theta=self.theta, drawn_in=drawn_in) as problem:
                gradients = autograd_gradients(problem.objective, self.theta)
        except Exception:  # whatever the caller's loss raises where inputs and targets are not of one batch
            return {}
        return {position: gradient.values for position, gradient in gradients.items()}


def _at_entries(gradients: Mapping[int, Floats], tried: Mapping[int, ParameterTrial]) -> dict[int, Floats]:
    """Whole gradients at the entries that were tried."""
    return {
        position: gradients[position][trial.coordinates] for position, trial in tried.items() if position in gradients
    }


def _wrong(judged: Mapping[int, Judged]) -> int:
    return sum(each.is_wrong for each in judged.values())
