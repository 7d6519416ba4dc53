"""`.grad` on trial, as a training step left it: compared with the right gradient, allowing for what rounding does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats, by_number
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.left_in_grad import left_gradients, on_missing_grad, theta_in_grad
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import flat_values
from torch_gradcheck.precision.dtypes import epsilon, name_of
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.reporting.facts import DiagnosisKind, ParameterReport, Role
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.modules import is_compiled
from torch_gradcheck.training_step.clipped_together import ClippedBesides, groups_by_optimizer
from torch_gradcheck.training_step.clipping import Clipping
from torch_gradcheck.training_step.error_bars import KernelGradients, bars_of
from torch_gradcheck.training_step.grad_before import GradBefore
from torch_gradcheck.training_step.judge import Judged, NoiseOfRerun, judge, judge_by_rerun
from torch_gradcheck.training_step.loss_scale import bars_where_finite, excused, open_row, unjudged_by_overflow
from torch_gradcheck.training_step.mistakes import Mistakes
from torch_gradcheck.training_step.ranks.grads import GradsOfRanks, Left
from torch_gradcheck.training_step.ranks.reduction import Reduction
from torch_gradcheck.training_step.ranks.window import WindowOfRanks
from torch_gradcheck.training_step.regimes import decided_by_both, is_seen, replays_in_regimes
from torch_gradcheck.training_step.replay import Replays, coarsest
from torch_gradcheck.training_step.reproduced import judged_by_rerun
from torch_gradcheck.training_step.rows import accumulated_maybe, hidden_share, judged_row, unjudged_row
from torch_gradcheck.training_step.same_function import compared_with_step
from torch_gradcheck.training_step.step import TrainingStep, taken_in_backward
from torch_gradcheck.verdicts.rows import frozen_row
from torch_gradcheck.verdicts.trial import ParameterTrial

ON_TRIAL = "on trial is what .grad holds"
"""How the note on what was judged begins."""


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
        self.left = left_gradients(self.theta, step.scaling, step.reduced_in)
        self.why_unjudged = step.weights_moved() or ("" if step.forwards else taken_in_backward(self.theta))
        self._missing: set[int] = set()
        self._hides = 0.0
        self._default = torch.get_default_dtype()
        self._whole = not (request.include or request.exclude)
        clips_others = step.clip_norm is not None and not self._whole
        self._besides = ClippedBesides.of(model, self.theta, step.scaling) if clips_others else ClippedBesides()
        self.replays: Replays | None = None
        self._in_other_regimes: list[Replays] = []
        self._of_ranks = GradsOfRanks(request.team, self.theta, self.left)
        self._mistakes = Mistakes(model, request, step, self.theta, self._of_ranks, self.drawn_in)
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
                objective,
                self.theta,
                self._step,
                self.left,
                autograd_float64,
                self.replays and self.replays.within_range,
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
        found = self._mistakes.of_the_step(judged, trials)
        if 2 * sum(diagnosis.kind.is_of_the_whole_gradient for diagnosis in found.values()) >= len(found):
            return judged  # a plain mistake to the last digits: no rounding does that
        assert self.replays is not None, "there are others only beside the plain one"
        plain, best = self.replays, judged
        for replays in self._in_other_regimes:
            other = self._judged_by(replays, objective, autograd_float64, trials)
            if _wrong(other) >= _wrong(best):
                continue
            if is_seen(replays, self.left, plain):
                self.replays, best = replays, other
            else:
                best = decided_by_both(judged, other, replays.regime)
        return best

    def _judged_by(
        self,
        replays: Replays | None,
        objective: Objective,
        autograd_float64: Mapping[int, AnalyticGradient],
        trials: Mapping[int, ParameterTrial],
    ) -> dict[int, Judged]:
        """Every `.grad`, with the error bars that these replays give; what only a loss scale has spoilt, undecided.

        It is clipped as explains most of it.
        """
        spoilt = replays if replays and replays.unscaled else None
        within = replays and replays.within_range

        def clipped_by(clipping: Clipping, besides: ClippedBesides) -> dict[int, Judged]:
            judged = self._judged_within(within, spoilt, objective, autograd_float64, trials, clipping)
            return excused(judged, replays, self._step, self.theta, self._unclipped, besides)

        judged = clipped_by(self._clipping(self._besides), self._besides)
        for clipping, besides in self._other_clippings() if _wrong(judged) else []:
            other = clipped_by(clipping, besides)
            judged = other if _wrong(other) < _wrong(judged) else judged
        return judged

    def _clipping(self, besides: ClippedBesides, groups: Sequence[frozenset[int]] = ()) -> Clipping:
        """The limits, where these gradients are clipped besides: where there are none, all that is clipped is known."""
        own = [each.values for at, each in self.left.items() if at not in self._unclipped]
        held = math.hypot(besides.norm, *[float(np.linalg.norm(values)) for values in own])
        return Clipping(self._step, self._whole and not besides.there, self._unclipped, held, groups)

    def _other_clippings(self) -> list[tuple[Clipping, ClippedBesides]]:
        """Other ways in which a loop may clip norms: those of each optimizer, and of what is no part of this model."""
        if self._step.clip_norm is None:
            return []
        besides = ClippedBesides.of(self._model, self.theta, self._step.scaling) if self._whole else self._besides
        together = [(self._clipping(besides), besides)] if self._whole and besides.there else []
        groups = groups_by_optimizer(self.theta)
        return together + ([(self._clipping(self._besides, groups), self._besides)] if groups else [])

    def _judged_within(
        self,
        replays: Replays | None,
        spoilt: Replays | None,
        objective: Objective,
        autograd_float64: Mapping[int, AnalyticGradient],
        trials: Mapping[int, ParameterTrial],
        clipping: Clipping,
    ) -> dict[int, Judged]:
        """The same by replays without a loss scale for tensors for which it overflows, as in the `spoilt` ones."""
        overflowing = spoilt.overflowing if spoilt else frozenset()
        dtype = coarsest(self.theta, replays.regime if replays else None)
        kernels = KernelGradients(objective, self.theta, dtype, self._request.seed)
        given = {position: trial.at(self.left[position].values) for position, trial in trials.items()}
        expected, fractions = clipping.of_right({at: trial.results.numeric for at, trial in trials.items()}, given)
        plain = PlainRun(replays, trials)
        fractions_of_replay = clipping.fractions(plain, given) if len(plain) else fractions
        summing = {position: self._of_reduction(position, trial) for position, trial in trials.items()}
        judged = {}
        for position, trial in trials.items():
            runs = [trial.at(run) for run in replays.gradients[position]] if replays else []
            exact = trial.at(autograd_float64[position].values)
            left = fractions[position]
            of_kernels = partial(kernels.of, position, trial)
            bars = bars_of(runs, exact, of_kernels)
            if spoilt and position in overflowing:
                scaled = [trial.at(run) for run in spoilt.gradients[position]]
                bars = bars_where_finite(bars, scaled, exact, of_kernels)
            bars = bars.beside(summing[position])
            own_bar = by_number(partial(np.multiply, left), trial.results.error_bar)
            right = replace(trial.results, numeric=expected[position], error_bar=own_bar)
            on_trial = replace(trial, analytic=given[position], reached=self.left[position].reached, results=right)
            judged[position] = judge(on_trial, bars.times(min(1.0, 2 * left)), self._request.tolerance)
            if runs and self._step.clip_value is None and position not in overflowing:
                left = fractions_of_replay[position]
                judged[position] = self._judged_by_rerun(position, judged[position], runs, summing[position], left)
        if replays is None or self._step.clip_value is not None or self._is_compiled or not replays.again:
            return judged
        in_range = {position: each for position, each in judged.items() if position not in overflowing}
        left_of = {position: fractions_of_replay[position] for position in in_range}
        rerun = {position: left_of[position] * plain[position] for position in in_range}
        again = {at: left_of[at] * trials[at].at(replays.again[at]) for at in replays.again if at in left_of}
        own = {position: self.left[position].epsilon for position in in_range}
        besides = {position: left_of[position] * summing[position] for position in in_range}
        tolerance = self._request.tolerance
        return judged | judged_by_rerun(in_range, rerun, again, besides, own, epsilon(dtype), tolerance)

    @cached_property
    def _inputs(self) -> list[int]:
        """The positions of tensors that are no parameters."""
        return [position for position, entry in enumerate(self.theta) if entry.role is not Role.PARAMETER]

    @cached_property
    def _unclipped(self) -> list[int]:
        """The positions of what a loop does not clip: no parameters, and what its scaler has not unscaled yet."""
        scaling, theta = self._step.scaling, self.theta
        scaled = [at for at in theta.checked if scaling.has_unscaled and scaling.carried(theta[at].parameter) != 1]
        return sorted({*self._inputs, *scaled})

    def _of_reduction(self, position: int, trial: ParameterTrial) -> Floats:
        """How far the sum over the ranks may move each entry that was tried, where it is coarser than float32's.

        The step sums in one precision, and the step run again in that of its parameters: they are as far apart as the
        coarsest of them rounds.
        """
        window, known = self._step.window, [self._step.reduced_in, self._step.computed_in]
        dtype = max([each for each in known if each] + [self.theta[position].own_dtype], key=epsilon)
        if not isinstance(window, WindowOfRanks) or epsilon(dtype) <= epsilon(torch.float32):
            return np.broadcast_to(0.0, len(trial.coordinates))  # of no memory
        parts = self._mistakes.gradients_by_batch()
        error = Reduction(window, parts, dtype, self._step.scaling.scale).error(position)
        return error[trial.coordinates] if error.ndim else np.full(len(trial.coordinates), error)

    @property
    def _is_compiled(self) -> bool:
        """Whether the step ran compiled code, which rounds in other places than its rerun does."""
        return self._step.compiled or is_compiled(self._model)

    def _judged_by_rerun(
        self, position: int, judged: Judged, runs: Sequence[Floats], summing: Floats, fraction: float
    ) -> Judged:
        """The same, where the step's plain rerun shows a mistake that rounding would hide."""
        plain, *noisy = runs
        return judge_by_rerun(
            judged,
            fraction * plain,
            NoiseOfRerun.of(plain, noisy, self._rows(position, judged.trial)).times(fraction),
            fraction * summing,
            judged.trial.at(flat_values(self.theta[position])),
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
        diagnoses = self._mistakes.named(judged, trials) if _wrong(judged) else {}
        self._hides = max([hidden_share(each) for each in judged.values()], default=0.0)
        rows = []
        for position, entry in enumerate(self.theta):
            if entry.frozen:
                rows.append(frozen_row(entry))
            elif position in judged:
                row = judged_row(entry, judged[position], diagnoses.get(position))
                rows.append(open_row(row, judged[position].open) if judged[position].open else row)
            else:
                missing, left = position in self._missing, self.left[position]
                row_by_overflow = unjudged_by_overflow(entry, left, position, self.replays, self._step)
                rows.append(row_by_overflow or unjudged_row(entry, left, self.why_unjudged, missing))
        unknown = {self.theta[at].name for at in self.theta.checked if self._may_have_held(self.theta[at].parameter)}
        return [accumulated_maybe(row) if row.name in unknown else row for row in rows]

    def notes(self, rows: Sequence[ParameterReport]) -> list[str]:
        """The notes on the step, where there is something to say of it, on what was judged, and on the error bars."""
        of_window = "" if self._step.window is None else self._step.window.note
        notes = [note for note in (self._mistakes.saw_other_inputs, of_window, *self._not_judged) if note]
        notes.append(f"{ON_TRIAL}: {self.why_unjudged or self._precision()}{self._besides.words}")
        if rows and all(row.diagnosis and row.diagnosis.kind is DiagnosisKind.MISSING for row in rows):
            notes.append("no parameter has a .grad: was zero_grad() called after backward(), or backward() not at all?")
        return notes

    def _words_on_sum(self) -> str:
        dtype = self._step.reduced_in
        if dtype is None or epsilon(dtype) <= epsilon(torch.float32):
            return ""
        return f", and what a sum over the ranks in {name_of(dtype)} may round"

    def _precision(self) -> str:
        dtypes = sorted({name_of(entry.own_dtype) for entry in self.theta})
        plain = self.replays is None or self.replays.regime.is_plain
        regime = "" if plain or self.replays is None else f", {self.replays.regime}"
        hides = f", and hide mistakes of up to {self._hides:.0%} of a gradient that matches" if self._hides else ""
        return (
            f"computed in {', '.join(dtypes)}{regime}; the error bars say how far rounding moved the same step when it "
            f"was run again{self._words_on_sum()}{hides}"
        )


class PlainRun(Mapping[int, Floats]):
    """The gradients of the replay without noise at the entries that were tried, by position; made when asked for."""

    def __init__(self, replays: Replays | None, trials: Mapping[int, ParameterTrial]) -> None:
        self._replays, self._trials = replays, trials if replays else {}

    def __getitem__(self, position: int) -> Floats:
        assert self._replays is not None, "without replays there is no position"
        return np.nan_to_num(self._trials[position].at(self._replays.gradients[position][0]))

    def __iter__(self) -> Iterator[int]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)


def _wrong(judged: Mapping[int, Judged]) -> int:
    return sum(each.is_wrong for each in judged.values())
