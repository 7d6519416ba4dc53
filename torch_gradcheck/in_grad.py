"""`.grad` on trial, as a training step left it: compared with the certified gradient, allowing for what rounding does.

How far rounding moves a correct gradient is measured, in three ways. The step's own computation is run again in its own
precisions, and a few times more with rounding as noise: how far these come apart is the error bar. Where the plain run
itself is further from float64 than that, the kernels of its dtype may do it (sums that stagnate, underflow): they are
run under float64 Python, and as much as they are off is allowed too. What the user's code does in that dtype is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from torch_gradcheck.analytic import AnalyticGradient, autograd_gradients, gradients_of, left_gradients
from torch_gradcheck.borrow import Loan
from torch_gradcheck.compare import compared_row, frozen_row
from torch_gradcheck.differences.sampling import Floats
from torch_gradcheck.differences.trial import Outcome
from torch_gradcheck.facts import Diagnosis, DiagnosisKind, ParameterReport, Status, Verdict
from torch_gradcheck.global_state import RandomState, seed_everything
from torch_gradcheck.native import NativeRuns, Regime, native_runs
from torch_gradcheck.numerical import Tried, flat_values
from torch_gradcheck.objective import Objective
from torch_gradcheck.precision import epsilon
from torch_gradcheck.request import Request
from torch_gradcheck.rounding import KernelsInMode
from torch_gradcheck.seen import autocast_now
from torch_gradcheck.step_diagnosis import Reference, diagnosed
from torch_gradcheck.theta import Theta, ThetaEntry
from torch_gradcheck.training_step import Computation, TrainingStep, taken_in_backward

MARGIN = 6.0
"""How many times further than any of the noisy runs a gradient may be off. Over 2,200 tensors of correct models in
float32, bfloat16, float16 and under autocast the plain run was off by at most 2.3 times the noisy ones."""

SYSTEMATIC = 3.0
"""How many times as far off as the kernels of its dtype are a plain run is believed to be because of them."""

KERNEL_RUNS = 3
"""How many runs of the kernels in a coarser dtype show what they do."""

PLAIN = {
    DiagnosisKind.SCALED,
    DiagnosisKind.SIGN_FLIPPED,
    DiagnosisKind.MISSING,
    DiagnosisKind.WEIGHT_DECAY,
    DiagnosisKind.ACCUMULATED,
    DiagnosisKind.STALE,
}
"""Mistakes of a whole gradient that rounding does not imitate."""

DRAWS = 20
"""How often a step's random numbers are drawn anew before a parameter counts as always reached."""

TELLING = 8
"""So many entries are proportional by no accident."""

ROUNDINGS = 64.0
"""How many machine epsilons of the largest entry two runs of one step may differ by."""

RESOLVED = 1.0
"""A match counts as one where an error of this share of the gradient would have been seen: none, or twice of it."""


class Bars(NamedTuple):
    """How far rounding may move a tensor's gradient: any one entry of it, and all of it in norm."""

    entry: float
    norm: float


@dataclass(frozen=True)
class Judged:
    """One parameter's `.grad` beside the right gradient.

    Attributes:
        tried: what was found, entry by entry; `answer.numeric` is what `.grad` should be (clipped, where the loop
            clips), `answer.error` its error bar with that of rounding.
        bars: what rounding may do.
    """

    tried: Tried
    bars: Bars


class LeftInGrad:
    """Reads `.grad` and runs the step again natively, before the model is lent to the check; judges while it is.

    Attributes:
        regime: the autocast that the step ran under, as it was seen or as the gradients themselves show.
        left: what `.grad` holds, by position in θ.
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
        self.cannot = step.weights_moved() or ("" if step.forwards else taken_in_backward(theta))
        self._run: Callable[[Regime], NativeRuns | None] = lambda regime: native_runs(
            model, functions, computation, theta, regime, asked.seed, step.start
        )
        self.runs, self._others = self._chosen_runs()

    # --- before the loan -------------------------------------------------------------------------------------------

    def _chosen_runs(self) -> tuple[NativeRuns | None, list[NativeRuns]]:
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

    def _share_within(self, runs: NativeRuns) -> float:
        """The share of the parameters whose `.grad` is the plain run's, up to rounding."""
        within = [
            bool(np.max(np.abs(self.left[position].values - plain), initial=0.0) <= _apart(plain, noisy).entry)
            for position, (plain, *noisy) in runs.gradients.items()
        ]
        return float(np.mean(within))

    def _share_closer(self, runs: NativeRuns, others: NativeRuns) -> float:
        """The share of the parameters whose `.grad` is much closer to a multiple of this run's than of the other's."""
        closer = [
            _from_multiple(left.values, runs.gradients[position][0])
            < 0.5 * _from_multiple(left.values, others.gradients[position][0])
            for position, left in self.left.items()
        ]
        return float(np.mean(closer))

    # --- while the model is lent -----------------------------------------------------------------------------------

    @property
    def drawn_in(self) -> torch.dtype | None:
        """The precision the step drew its random numbers in."""
        lowest = _coarsest(self._theta)
        return lowest if self.step.start is not None and lowest is not torch.float64 else None

    def check_replay(self, objective: Objective) -> None:
        """Finds out whether J is what the step computed; `cannot` says why not."""
        if self.cannot:
            return
        random, moving = _draws(objective), False
        if not random and self.step.start is None:
            moving = _reads_what_it_updates(objective)
        if (random or moving) and self.step.start is None:
            self.cannot = self.step.not_replayed(self._model)
            self._missing = self._always_reached(objective)
        elif random and self.runs is not None and not self._same_loss(objective, self.runs):
            self.cannot = (
                f"the training step was random, and J = {self.runs.losses[0]:.6g} in its own precision but "
                f"{objective.loss:.6g} in the check's with the same random state: other random numbers were drawn"
            )

    def _always_reached(self, objective: Objective) -> set[int]:
        """Parameters without a `.grad` that J depends on however its random numbers fall."""
        missing = {position for position, left in self.left.items() if not left.reached}
        for draw in range(DRAWS if missing else 0):
            with torch.enable_grad(), objective.evaluation():
                seed_everything(draw)
                gradients = gradients_of(objective.compute, self._theta, epsilon(objective.dtype))
            missing = {position for position in missing if np.any(gradients[position].values)}
        return missing

    def _same_loss(self, objective: Objective, runs: NativeRuns) -> bool:
        plain, *noisy = runs.losses
        rounding = 8 * epsilon(_coarsest(self._theta, runs.regime)) * abs(plain)
        return bool(abs(plain - objective.loss) <= MARGIN * max(abs(loss - plain) for loss in noisy) + rounding)

    def judged(
        self, objective: Objective, exact: Mapping[int, AnalyticGradient], trials: Mapping[int, Tried]
    ) -> dict[int, Judged]:
        """Every `.grad` beside the certified gradient, by position in θ; nothing where it cannot be judged."""
        if self.cannot:
            return {}
        judged = self._judged_under(self.runs, objective, exact, trials)
        if not self._others or 2 * len(_wrong(judged)) < len(judged):
            return judged
        found = self._diagnosed(judged, [])
        if 2 * sum(diagnosis.kind in PLAIN for diagnosis in found.values()) >= len(found):
            return judged  # a plain mistake to the last digits: no rounding does that
        for runs in self._others:
            other = self._judged_under(runs, objective, exact, trials)
            if len(_wrong(other)) < len(_wrong(judged)):
                self.runs, judged = runs, other
        return judged

    def _judged_under(
        self,
        runs: NativeRuns | None,
        objective: Objective,
        exact: Mapping[int, AnalyticGradient],
        trials: Mapping[int, Tried],
    ) -> dict[int, Judged]:
        kernels = _Kernels(
            objective, self._theta, _coarsest(self._theta, runs.regime if runs else None), self._asked.seed
        )
        right, share = self._expected(trials)
        judged = {}
        for position, tried in trials.items():
            native = [] if runs is None else [run[tried.coordinates] for run in runs.gradients[position]]
            bars = _bars(native, exact[position].values[tried.coordinates], partial(kernels.of, position, tried))
            bars = Bars(bars.entry * min(1.0, 2 * share), bars.norm * min(1.0, 2 * share))
            expected = replace(tried.answer, numeric=right[position], error=tried.answer.error * share)
            left = self.left[position]
            given = replace(tried, analytic=left.values[tried.coordinates], reached=left.reached, answer=expected)
            judged[position] = _judge(given, bars, self._asked.tolerance)
            if native and self.step.clip_value is None:
                plain = share * native[0]
                theta = flat_values(self._theta[position])[tried.coordinates]
                if any(_off_along(given.analytic, plain, direction) for direction in (theta, plain)):
                    judged[position] = _judge_by_rerun(given, plain, left.epsilon, self._asked.tolerance)
        return judged

    def _expected(self, trials: Mapping[int, Tried]) -> tuple[dict[int, Floats], float]:
        """What `.grad` should hold: the right gradients, clipped as the loop says it clips, and by which factor."""
        right = {position: np.nan_to_num(tried.answer.numeric) for position, tried in trials.items()}
        limit = self.step.clip_value
        if limit is not None:
            return {position: np.clip(t, -limit, limit) for position, t in right.items()}, 1.0
        if self.step.clip_norm is None:
            return right, 1.0
        squares = sum(float(np.sum(t**2)) for t in right.values())
        if self._asked.include or self._asked.exclude:  # the norm is over all parameters: the factor has to tell it
            given = {position: self.left[position].values[trials[position].coordinates] for position in right}
            share = sum(float(np.dot(np.nan_to_num(given[p]), t)) for p, t in right.items()) / max(squares, 1e-300)
        else:
            share = self.step.clip_norm / (np.sqrt(squares) + 1e-6)  # as torch.nn.utils.clip_grad_norm_ does
        share = float(np.clip(share, 0.0, 1.0))
        return {position: t * share for position, t in right.items()}, share

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
        return diagnosed(self._theta, {position: each.tried for position, each in judged.items()}, references)

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
                rows.append(replace(self._row(entry, judged[position]), diagnosis=diagnoses.get(position)))
            else:
                rows.append(self._unjudged_row(position, entry, self.left[position]))
        return rows

    def _row(self, entry: ThetaEntry, judged: Judged) -> ParameterReport:
        row = compared_row(entry, judged.tried, tolerance=np.inf)
        size = float(np.linalg.norm(judged.tried.answer.numeric))
        unknown = float(np.linalg.norm(judged.tried.answer.error - judged.bars.entry))
        says_something = row.status is Status.MATCH or (row.status is Status.FLAT and size > unknown)
        if not says_something:
            return row
        if judged.bars.norm <= RESOLVED * size:
            return replace(row, status=Status.MATCH, reason="")
        how_much = f"by {judged.bars.norm / size:.0%} of its size" if judged.bars.norm < np.inf else "without limit"
        reason = f"rounding in the training step's precision may move a right gradient {how_much}"
        return replace(row, status=Status.UNDECIDED, reason=reason)

    def _unjudged_row(self, position: int, entry: ThetaEntry, left: AnalyticGradient) -> ParameterReport:
        """Of a `.grad` with nothing to compare it with: what is no number, or not there, is wrong all the same."""
        row = replace(frozen_row(entry), status=Status.UNDECIDED, reason=self.cannot)
        count = len(left.values)
        infinite = int(np.sum(~np.isfinite(left.values)))
        if infinite:
            reason = f"{infinite} of {count} coordinates {'is' if infinite == 1 else 'are'} not finite"
            diagnosis = Diagnosis(DiagnosisKind.UNKNOWN, f".grad holds NaN or infinity: {reason}")
            return _wrong_row(row, np.nan, count, infinite, reason, diagnosis)
        if position in self._missing:
            reason = "None: the backward never reached it, or zero_grad() came after it"
            diagnosis = Diagnosis(DiagnosisKind.MISSING, f".grad is {reason}; J depends on it whatever is drawn")
            return _wrong_row(row, 1.0, count, count, f".grad is {reason}", diagnosis)
        return row

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


class _Kernels:
    """The gradients that torch's kernels of a coarser dtype give under the Python of the check; run when asked for."""

    def __init__(self, objective: Objective, theta: Theta, dtype: torch.dtype, seed: int) -> None:
        self._objective, self._theta, self._dtype, self._seed = objective, theta, dtype, seed

    def of(self, position: int, tried: Tried) -> list[Floats]:
        """Of the coordinates of one parameter that were tried, a run each."""
        return [run[position].values[tried.coordinates] for run in self._runs]

    @cached_property
    def _runs(self) -> list[dict[int, AnalyticGradient]]:
        generator = torch.Generator().manual_seed(self._seed)
        mode = KernelsInMode(self._objective.dtype, self._dtype, generator)
        return [autograd_gradients(self._objective, self._theta, mode) for _ in range(KERNEL_RUNS)]


def _bars(native: Sequence[Floats], exact: Floats, kernels: Callable[[], Sequence[Floats]]) -> Bars:
    """How far rounding may move a correct gradient from `exact`, autograd's own in the precision of the check."""
    if not native:
        return _furthest(kernels(), exact, MARGIN)
    plain, *noisy = native
    bars = _apart(plain, noisy)
    off = _furthest([plain], exact)
    if off.entry <= bars.entry and off.norm <= bars.norm:
        return bars
    systematic = _furthest(kernels(), exact, SYSTEMATIC)
    more = Bars(*(1.5 * min(pair) for pair in zip(off, systematic, strict=True)))
    return Bars(bars.entry + more.entry, bars.norm + more.norm)


def _apart(plain: Floats, noisy: Sequence[Floats]) -> Bars:
    return _furthest(noisy, plain, MARGIN)


def _furthest(runs: Sequence[Floats], exact: Floats, margin: float = 1.0) -> Bars:
    """The largest distance of a run, times the margin; infinite where a run is not finite."""
    with np.errstate(all="ignore"):
        off = np.nan_to_num(np.abs(np.array(runs) - exact), nan=np.inf)
        entry = np.max(off, initial=0.0)
        norm = np.max(np.linalg.norm(off, axis=1), initial=0.0) if np.isfinite(entry) else np.inf
    return Bars(margin * float(entry), margin * float(norm))


def _judge(tried: Tried, bars: Bars, tolerance: float) -> Judged:
    """Which entries are wrong: each by more than the bar of an entry, or all of them by more than that of the norm."""
    given, answer = tried.analytic, tried.answer
    finite = np.isfinite(given)
    error = answer.error + bars.entry
    with np.errstate(all="ignore"):
        size = tolerance * (np.abs(given) + np.abs(answer.numeric))
        off = np.abs(given - answer.numeric)
        wrong = ~finite | (off > size + error)
        known = answer.outcome != Outcome.UNDECIDED
        together = float(np.linalg.norm((off - size - answer.error).clip(min=0)[known & finite])) > bars.norm
        if together and not wrong.any():
            wrong = off > bars.norm / np.sqrt(max(len(off), 1))
    outcome = np.where(answer.outcome == Outcome.MISMATCH, Outcome.MATCH, answer.outcome)
    outcome[(wrong & known) | ~finite] = Outcome.MISMATCH
    return Judged(replace(tried, answer=replace(answer, error=error, outcome=outcome.astype(np.int8))), bars)


def _off_along(given: Floats, plain: Floats, direction: Floats) -> bool:
    """Whether `.grad` is off from the plain run by a multiple of θ, or of the run itself, and next to nothing else.

    So it is when the loop decays, or scales, a gradient that it computed just as the run did: no rounding does that,
    however coarse, and smaller mistakes show than rounding would hide.
    """
    off, square = given - plain, float(np.dot(direction, direction))
    if len(off) < TELLING or not np.isfinite(square) or not square or not np.all(np.isfinite(off)):
        return False
    left = off - float(np.dot(off, direction)) / square * direction
    size = float(np.linalg.norm(off))
    return size > 1e-4 * float(np.linalg.norm(given)) and float(np.linalg.norm(left)) < 0.01 * size


def _judge_by_rerun(given: Tried, plain: Floats, eps: float, tolerance: float) -> Judged:
    """The same with the plain run in the place of the right gradient, from which rounding does not tell it apart."""
    error = np.full_like(plain, ROUNDINGS * eps * np.max(np.abs(plain), initial=0.0))
    return _judge(replace(given, answer=replace(given.answer, numeric=plain, error=error)), Bars(0.0, 0.0), tolerance)


def _from_multiple(given: Floats, of: Floats) -> float:
    """The distance of a gradient from the nearest multiple of another; infinite where one is not finite."""
    square = float(np.dot(of, of))
    factor = float(np.dot(given, of)) / square if square > 0 and len(of) > 1 else 1.0  # one number is any multiple
    return float(np.nan_to_num(np.linalg.norm(given - factor * of), nan=np.inf))


def _wrong_row(
    row: ParameterReport, ratio: float, checked: int, mismatched: int, reason: str, diagnosis: Diagnosis
) -> ParameterReport:
    """The row of a `.grad` that is wrong whatever it should be."""
    return replace(
        row,
        status=Status.MISMATCH,
        reason=reason,
        relative_error=ratio,
        verdict=Verdict.WORRY,
        checked=checked,
        mismatched=mismatched,
        diagnosis=diagnosis,
    )


def _wrong(judged: Mapping[int, Judged]) -> list[int]:
    return [position for position, each in judged.items() if np.any(each.tried.answer.outcome == Outcome.MISMATCH)]


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


def _reads_what_it_updates(objective: Objective) -> bool:
    """Whether J is another number after an evaluation, as spectral norm's is in training: it moves its buffers."""
    with objective.evaluation():
        first = float(objective.compute().detach())
        return not objective.same(float(objective.compute().detach()), first)
