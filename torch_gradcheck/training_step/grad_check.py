"""`.grad` on trial, as a training step left it: compared with the right gradient, allowing for what rounding does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Loan
from torch_gradcheck.borrowing.random_state import RandomState, seed_everything
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients, theta_gradients
from torch_gradcheck.gradients.left_in_grad import left_gradients
from torch_gradcheck.objective.loss import Computation
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta, flat_values
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, ParameterReport
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.modules import is_compiled
from torch_gradcheck.training_step.diagnosis import Reference, diagnosed
from torch_gradcheck.training_step.error_bars import MARGIN, Bars, KernelGradients, bars_of, spread, spread_by_entry
from torch_gradcheck.training_step.forward_state import autocast_now
from torch_gradcheck.training_step.judge import ROUNDINGS, Judged, judge, judge_by_rerun
from torch_gradcheck.training_step.replay import Regime, Replays, replays_of
from torch_gradcheck.training_step.rows import judged_row, unjudged_row
from torch_gradcheck.training_step.step import TrainingStep, taken_in_backward
from torch_gradcheck.verdicts.rows import frozen_row
from torch_gradcheck.verdicts.trial import ParameterTrial

DRAWS = 20
"""How often a step's random numbers are drawn anew before a parameter counts as always reached."""


class GradCheck:
    """Reads `.grad` and runs the step again natively, before the model is lent to the check; judges while it is.

    Attributes:
        left: what `.grad` holds, by position in θ.
        runs: the step run again, under the autocast it was seen to run under, or that the gradients themselves show.
        cannot: why nothing can be said about `.grad`; "" where something can.
    """

    def __init__(
        self,
        model: nn.Module,
        functions: Sequence[Callable[..., Any]],
        computation: Computation,
        theta: Theta,
        asked: Request,
        step: TrainingStep,
    ) -> None:
        self._theta, self._asked, self.step = theta, asked, step
        self._model, self._functions = model, functions
        self.left = left_gradients(theta, step.scale)
        self._missing: set[int] = set()
        self._default = torch.get_default_dtype()
        self.cannot = step.weights_moved() or ("" if step.forwards else taken_in_backward(theta))
        self._run: Callable[[Regime], Replays | None] = lambda regime: replays_of(
            model, functions, computation, theta, regime, asked.seed, step.start
        )
        self.runs, self._others = self._chosen_runs()

    # --- before the loan -------------------------------------------------------------------------------------------

    def _chosen_runs(self) -> tuple[Replays | None, list[Replays]]:
        """The native runs in the step's regime, and those in regimes it may have had where nobody saw."""
        if self.cannot:
            return None, []
        if self.step.autocast is not None:
            return self._run(Regime(self.step.autocast, self.step.loss_scale)), []
        plain = self._run(Regime(autocast_now(), self.step.loss_scale))
        if plain is None or self._share_within(plain) > 0.5:
            return plain, []
        others = [runs for regime in _autocasts(self._theta, self.step.loss_scale) if (runs := self._run(regime))]
        for runs in others:
            if self._share_closer(runs, plain) > 0.5:
                return runs, []
        return plain, others

    def _share_within(self, runs: Replays) -> float:
        """The share of the parameters whose `.grad` is the plain run's, up to rounding."""
        return _share_of(self.left, runs)

    def _share_closer(self, runs: Replays, others: Replays) -> float:
        """The share of the parameters whose `.grad` is much closer to a multiple of this run's than of the other's."""
        closer = [
            _from_multiple(left.values, runs.gradients[position][0])
            < 0.5 * _from_multiple(left.values, others.gradients[position][0])
            for position, left in self.left.items()
        ]
        return float(np.mean(closer))

    # --- while the model is lent -----------------------------------------------------------------------------------

    @property
    def drawn_in(self) -> DrawnIn | None:
        """The precisions the step drew its random numbers in."""
        return None if self.step.start is None else DrawnIn(self._default, _coarsest(self._theta))

    def check_replay(self, objective: Objective, exact: Mapping[int, AnalyticGradient]) -> None:
        """Finds out whether J is what the step computed; `cannot` says why not."""
        if self.cannot:
            return
        random = _draws(objective)
        if self.step.start is not None:
            self.cannot = self._other_numbers(objective, exact) if random else ""
        elif random or _reads_what_it_updates(objective, self._theta):
            self.cannot = self.step.not_replayed(self._model)
            self._missing = self._always_reached(objective)

    def _other_numbers(self, objective: Objective, exact: Mapping[int, AnalyticGradient]) -> str:
        """Why the random numbers of the check are not those of the step; "" where they are."""
        runs = self.runs
        if runs is None:
            return "the training step was random, and could not be run again in its own precision to compare"
        if (self.step.compiled or is_compiled(self._model)) and not self._follows(runs):
            return "the training step was random and compiled: a compiler may draw other random numbers"
        if self._same_loss(objective, runs) and _share_of(exact, runs) > 0.5:
            return ""
        return (
            f"the training step was random, and J = {runs.losses[0]:.6g} in its own precision but "
            f"{objective.loss:.6g} in the check's with the same random state: other random numbers were drawn"
        )

    def _follows(self, runs: Replays) -> bool:
        """Whether most of `.grad` is a multiple of the plain run: the same random numbers were drawn."""
        close = [
            _from_multiple(left.values, runs.gradients[position][0]) <= 0.1 * float(np.linalg.norm(left.values))
            for position, left in self.left.items()
        ]
        return float(np.mean(close)) > 0.5

    def _always_reached(self, objective: Objective) -> set[int]:
        """Parameters without a `.grad` that J depends on however its random numbers fall."""
        missing = {position for position, left in self.left.items() if not left.reached}
        for draw in range(DRAWS if missing else 0):
            with torch.enable_grad(), objective.evaluation():
                seed_everything(draw)
                gradients = theta_gradients(objective.compute, self._theta, epsilon(objective.dtype))
            missing = {position for position in missing if np.any(gradients[position].values)}
        return missing

    def _same_loss(self, objective: Objective, runs: Replays) -> bool:
        plain, *noisy = runs.losses
        rounding = 8 * epsilon(_coarsest(self._theta, runs.regime)) * abs(plain)
        return bool(abs(plain - objective.loss) <= MARGIN * max(abs(loss - plain) for loss in noisy) + rounding)

    def judged(
        self, objective: Objective, exact: Mapping[int, AnalyticGradient], trials: Mapping[int, ParameterTrial]
    ) -> dict[int, Judged]:
        """Every `.grad` beside the certified gradient, by position in θ; nothing where it cannot be judged."""
        if self.cannot:
            return {}
        judged = self._judged_under(self.runs, objective, exact, trials)
        if not self._others or 2 * _wrong(judged) < len(judged):
            return judged
        found = self._diagnosed(judged, [])
        if 2 * sum(diagnosis.kind.is_of_the_whole_gradient for diagnosis in found.values()) >= len(found):
            return judged  # a plain mistake to the last digits: no rounding does that
        for runs in self._others:
            other = self._judged_under(runs, objective, exact, trials)
            if _wrong(other) < _wrong(judged):
                self.runs, judged = runs, other
        return judged

    def _judged_under(
        self,
        runs: Replays | None,
        objective: Objective,
        exact: Mapping[int, AnalyticGradient],
        trials: Mapping[int, ParameterTrial],
    ) -> dict[int, Judged]:
        kernels = KernelGradients(
            objective, self._theta, _coarsest(self._theta, runs.regime if runs else None), self._asked.seed
        )
        right, share = self._expected(trials)
        natives = {
            position: [run[trial.coordinates] for run in runs.gradients[position]] if runs else []
            for position, trial in trials.items()
        }
        plain_runs = {position: np.nan_to_num(native[0]) for position, native in natives.items() if native}
        share_of_runs = self._clipped_share(plain_runs, trials) if plain_runs else share
        judged = {}
        for position, trial in trials.items():
            native = natives[position]
            bars = bars_of(native, exact[position].values[trial.coordinates], partial(kernels.of, position, trial))
            bars = Bars(bars.entry * min(1.0, 2 * share), bars.norm * min(1.0, 2 * share))
            expected = replace(trial.results, numeric=right[position], error_bar=trial.results.error_bar * share)
            left = self.left[position]
            given = replace(trial, analytic=left.values[trial.coordinates], reached=left.reached, results=expected)
            judged[position] = judge(given, bars, self._asked.tolerance)
            if native and self.step.clip_value is None:
                plain, *noisy = native
                theta = flat_values(self._theta[position])[trial.coordinates]
                judged[position] = judge_by_rerun(
                    judged[position],
                    share_of_runs * plain,
                    share_of_runs * spread_by_entry(plain, noisy, self._rows(position, trial)),
                    theta,
                    left.epsilon,
                    self._asked.tolerance,
                )
        return judged

    def _rows(self, position: int, trial: ParameterTrial) -> int:
        """How many rows the entries tried make up: 1 where they are no whole tensor, or none of several axes."""
        entry = self._theta[position]
        whole = len(trial.coordinates) == entry.coordinates and len(entry.shape) > 1
        return entry.shape[0] if whole and entry.shape[0] else 1

    def _expected(self, trials: Mapping[int, ParameterTrial]) -> tuple[dict[int, Floats], float]:
        """What `.grad` should hold: the right gradients, clipped as the loop says it clips, and by which factor."""
        right = {position: np.nan_to_num(trial.results.numeric) for position, trial in trials.items()}
        limit = self.step.clip_value
        if limit is not None:  # before the norm, where the loop limits both
            right = {position: np.clip(t, -limit, limit) for position, t in right.items()}
        share = self._clipped_share(right, trials)
        return {position: t * share for position, t in right.items()}, share

    def _clipped_share(self, gradients: Mapping[int, Floats], trials: Mapping[int, ParameterTrial]) -> float:
        """What clipping their norm leaves of these gradients: 1 where it is within the limit, or there is none."""
        if self.step.clip_norm is None:
            return 1.0
        squares = sum(float(np.dot(t, t)) for t in gradients.values())
        if not (self._asked.include or self._asked.exclude):
            return min(1.0, self.step.clip_norm / (math.sqrt(squares) + 1e-6))  # as torch.nn.utils.clip_grad_norm_ does
        # The norm is one over all parameters, of which only some are known: the factor itself has to tell.
        given = {
            position: np.nan_to_num(self.left[position].values[trials[position].coordinates]) for position in trials
        }
        share = sum(float(np.dot(given[position], t)) for position, t in gradients.items()) / max(squares, 1e-300)
        return float(np.clip(share, 0.0, 1.0))

    # --- after it --------------------------------------------------------------------------------------------------

    def diagnoses(self, judged: Mapping[int, Judged]) -> dict[int, Diagnosis]:
        """The kind of mistake of every wrong `.grad`, by position in θ."""
        if not _wrong(judged):
            return {}
        previous = Reference("the gradient of the batch before", self._previous_gradients())
        return self._diagnosed(judged, [previous])

    def _diagnosed(self, judged: Mapping[int, Judged], more: Sequence[Reference]) -> dict[int, Diagnosis]:
        earlier = {
            position: self.step.earlier[self._theta[position].parameter]
            for position in judged
            if self._theta[position].parameter in self.step.earlier
        }
        references = [Reference("what .grad held after the step before", earlier), *more]
        return diagnosed(self._theta, {position: each.trial for position, each in judged.items()}, references)

    def _previous_gradients(self) -> dict[int, Floats]:
        """Those of the batch before, at the present weights; empty where that batch cannot be evaluated."""
        if self.step.previous is None:
            return {}
        asked = self._asked
        with Loan(self._model, self._functions, "keep", asked.dtype, asked.seed) as borrowed:
            try:
                objective = Objective(self._model, self.step.previous(asked.dtype), borrowed, asked.dtype)
                objective.record_evaluation()
                gradients = autograd_gradients(objective, self._theta)
            except RuntimeError:
                return {}
        return {position: gradient.values for position, gradient in gradients.items()}

    def rows(self, judged: Mapping[int, Judged]) -> list[ParameterReport]:
        """A row for every parameter."""
        diagnoses = self.diagnoses(judged)
        rows = []
        for position, entry in enumerate(self._theta):
            if entry.frozen:
                rows.append(frozen_row(entry))
            elif position in judged:
                rows.append(judged_row(entry, judged[position], diagnoses.get(position)))
            else:
                rows.append(unjudged_row(entry, self.left[position], self.cannot, position in self._missing))
        return rows

    def notes(self, rows: Sequence[ParameterReport]) -> list[str]:
        """What was judged, and how, a sentence each."""
        notes = [f"on trial is what .grad holds: {self.cannot or self._precision()}"]
        if rows and all(row.diagnosis and row.diagnosis.kind is DiagnosisKind.MISSING for row in rows):
            notes.append("no parameter has a .grad: was zero_grad() called after backward(), or backward() not at all?")
        return notes

    def _precision(self) -> str:
        dtypes = sorted({str(entry.own_dtype).removeprefix("torch.") for entry in self._theta})
        regime = "" if self.runs is None or self.runs.regime.is_plain else f", {self.runs.regime}"
        return (
            f"computed in {', '.join(dtypes)}{regime}; the error bars are what rounding there did "
            f"to the same step when it was run again"
        )


def _share_of(gradients: Mapping[int, AnalyticGradient], runs: Replays) -> float:
    """The share of the parameters whose gradient is that of the plain run, up to rounding."""
    with np.errstate(invalid="ignore"):
        within = [
            bool(np.max(np.abs(gradients[position].values - plain), initial=0.0) <= spread(plain, noisy).entry)
            for position, (plain, *noisy) in runs.gradients.items()
        ]
    return float(np.mean(within))


def _from_multiple(given: Floats, of: Floats) -> float:
    """The distance of a gradient from the nearest multiple of another; infinite where one is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        square = float(np.dot(of, of))
        factor = float(np.dot(given, of)) / square if square > 0 and len(of) > 1 else 1.0  # one number is any multiple
        return float(np.nan_to_num(np.linalg.norm(given - factor * of), nan=np.inf))


def _wrong(judged: Mapping[int, Judged]) -> int:
    return sum(each.is_wrong for each in judged.values())


def _coarsest(theta: Theta, regime: Regime | None = None) -> torch.dtype:
    """The coarsest precision that parameters are kept, or autocast computes, in."""
    dtypes = [entry.own_dtype for entry in theta if entry.own_dtype.is_floating_point]
    dtypes += [dtype for enabled, dtype in (regime.autocast if regime else {}).values() if enabled]
    return max(dtypes, key=epsilon, default=torch.float64)


def _autocasts(theta: Theta, scale: float) -> list[Regime]:
    """The autocasts that a step over float32 parameters may have run under."""
    if _coarsest(theta) is not torch.float32:
        return []
    device = theta[0].parameter.device.type
    return [Regime({device: (True, dtype)}, scale) for dtype in (torch.bfloat16, torch.float16)]


def _draws(objective: Objective) -> bool:
    """Whether J draws random numbers."""
    with objective.evaluation():
        before = RandomState.of_everything()
        objective.compute()
        return before.has_moved()


def _reads_what_it_updates(objective: Objective, theta: Theta) -> bool:
    """Whether the gradient is another after an evaluation, as spectral norm's is in training: J moves its buffers."""
    if objective.runs_backward:
        return False
    eps = epsilon(objective.dtype)
    with torch.enable_grad(), objective.evaluation():
        first, second = (theta_gradients(objective.compute, theta, eps) for _ in range(2))
    return any(
        np.max(np.abs(first[at].values - second[at].values), initial=0.0)
        > ROUNDINGS * eps * np.max(np.abs(each.values))
        for at, each in first.items()
        if len(each.values)
    )
