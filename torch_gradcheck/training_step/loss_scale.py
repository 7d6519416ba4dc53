"""A loss scale that overflows: the scaler skips such a step, so what is then infinite in `.grad` is no mistake."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.objective.theta import Theta, ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.training_step.clipped_together import ClippedBesides
from torch_gradcheck.training_step.error_bars import Bars, bars_of
from torch_gradcheck.training_step.judge import Judged
from torch_gradcheck.training_step.replay import Regime, Replays
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.verdicts.rows import frozen_row

SKIPPED = "the scaler skips this step and lowers its scale, so nothing is trained wrong"
"""Why a gradient that a loss scale has made infinite is not called wrong."""

BY_OTHERS = "the norm that .grad is clipped by is infinite, by parameters that are not checked"
"""What has spoilt a gradient that was clipped together with others."""


def with_unscaled(
    run: Callable[[Regime], Replays | None],
    regime: Regime,
    step: TrainingStep,
    theta: Theta,
    left: Mapping[int, AnalyticGradient],
) -> Replays | None:
    """The step run again; without its loss scale as well, where that overflows and a scaler skips such a step.

    Args:
        run: runs it again.
        regime: that of the step.
        step: what is known of it.
        theta: the caller's own parameters.
        left: what `.grad` holds, by position in θ.
    """
    replays, skipped = run(regime), step.scaling.skipped_of([entry.parameter for entry in theta])
    if replays is None or regime.scale == 1 or not skipped:
        return replays
    infinite = {at for at in skipped & left.keys() if not np.isfinite(left[at].values).all()}
    if infinite - replays.overflowing:
        replays = _unshared(run, replays, step)
    if not skipped & replays.overflowing:
        return replays
    return replace(replays, unscaled=run(replace(regime, scale=1.0)))


def _unshared(run: Callable[[Regime], Replays | None], replays: Replays, step: TrainingStep) -> Replays:
    """The step run again as loud as where each loss is divided by the batches of the step, or by ranks, only later."""
    batches = 1 if step.window is None else len(step.window.losses)
    louder = run(replace(replays.regime, scale=batches * replays.regime.scale)) if batches > 1 else None
    return replays if louder is None else replace(louder, regime=replays.regime)


def bars_where_finite(
    bars: Bars, scaled: Sequence[Floats], exact: Floats, kernels: Callable[[], Sequence[Floats]]
) -> Bars:
    """The bars, for entries that do not overflow by these alone: they are far smaller than those that do.

    Args:
        bars: of the whole tensor.
        scaled: the runs with the loss scale.
        exact: autograd's own gradient in the precision of the check.
        kernels: as for `bars_of`.
    """
    which = reduce(np.logical_and, [np.isfinite(run) for run in scaled])
    if not which.any():
        return bars
    own = bars_of([run[which] for run in scaled], exact[which], lambda: [run[which] for run in kernels()])
    return Bars(np.where(which, own.entry, bars.entry), bars.norm)


def excused(
    judged: Mapping[int, Judged],
    replays: Replays | None,
    step: TrainingStep,
    theta: Theta,
    unclipped: Collection[int],
    besides: ClippedBesides,
) -> dict[int, Judged]:
    """The gradients, with entries UNDECIDED that only the loss scale has spoilt: in the rerun, too, and only with it.

    Args:
        judged: what was found, by position in θ.
        replays: the step run again.
        step: what is known of it.
        theta: the caller's own parameters.
        unclipped: positions of tensors that a loop does not clip, such as those that are no parameters.
        besides: what may have been clipped together with them.
    """
    skipped = step.scaling.skipped_of([entry.parameter for entry in theta])
    known = skipped & judged.keys() if replays is not None and replays.unscaled is not None else set()
    spoilt = {at: _overflowed(judged[at], at, replays) for at in known}  # type: ignore[arg-type]
    here = any(flags.any() for flags in spoilt.values())
    if not here and not (besides.is_skipped and step.clip_norm is not None):
        return dict(judged)
    reason = _reason(step) if here else f"{BY_OTHERS}: {SKIPPED}"
    nothing = {at: np.full(len(each.trial.analytic), False) for at, each in judged.items()}
    found = {at: spoilt.get(at, none) & ~np.isfinite(judged[at].trial.analytic) for at, none in nothing.items()}
    for at in found.keys() - set(unclipped):
        found[at] |= _clipped(judged[at].trial.analytic, spoilt.get(at, nothing[at]), step)
    return {at: each.undecided(found[at], reason) for at, each in judged.items()}


def _overflowed(judged: Judged, position: int, replays: Replays) -> Flags:
    """The entries tried that are infinite or NaN in a rerun with the loss scale, and finite without it."""
    assert replays.unscaled is not None
    plain = judged.trial.at(replays.unscaled.gradients[position][0])
    right = np.isfinite(plain) & np.isfinite(judged.trial.results.numeric)
    return np.asarray(judged.trial.at(_not_finite(position, replays)) & right)


def _not_finite(position: int, replays: Replays) -> Flags:
    """The entries of a tensor that are infinite or NaN in one of the runs."""
    return reduce(np.logical_or, [~np.isfinite(run) for run in replays.all_of(position)])


def _clipped(given: Floats, spoilt: Flags, step: TrainingStep) -> Flags:
    """The entries that clipping makes of an overflow: a limited norm, being infinite, leaves 0 and NaN everywhere."""
    if step.clip_value is not None and step.clip_norm is not None:
        return np.full(len(given), True)  # the norm of what a limited value has made finite is not known
    if step.clip_norm is not None:
        return np.asarray(np.isnan(given) | (given == 0))
    if step.clip_value is not None:
        return np.asarray(spoilt & np.isclose(np.abs(given), step.clip_value))
    return np.full(len(given), False)


def open_row(row: ParameterReport, reason: str) -> ParameterReport:
    """The row of a gradient of which entries were left undecided, with the reason; as it is where others are wrong."""
    if row.status is Status.MISMATCH:
        return row
    return replace(row, status=Status.UNDECIDED, reason=reason, mismatched=0)


def is_skipped(row: ParameterReport) -> bool:
    """Whether a row is undecided because the loss scale has spoilt it, so that the scaler skips the step."""
    return row.status is Status.UNDECIDED and row.reason.endswith(SKIPPED)


def unjudged_by_overflow(
    entry: ThetaEntry, left: AnalyticGradient, position: int, replays: Replays | None, step: TrainingStep
) -> ParameterReport | None:
    """The row of a `.grad` that cannot be compared, and that the loss scale has spoilt; None where it has not."""
    if replays is None or replays.unscaled is None or np.isfinite(left.values).all():
        return None
    spoilt = position in replays.overflowing and step.scaling.skips(entry.parameter)
    if not spoilt or not np.isfinite(replays.unscaled.gradients[position][0]).all():
        return None
    return replace(frozen_row(entry), status=Status.UNDECIDED, reason=_reason(step))


def _reason(step: TrainingStep) -> str:
    return f"the loss scale of {step.scaling.scale:g} overflows in this step's own precision: {SKIPPED}"
