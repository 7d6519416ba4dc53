"""The regime a training step ran in, its autocast and loss scale: as it was seen, or as its `.grad` shows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.training_step.error_bars import spread
from torch_gradcheck.training_step.forward_state import autocast_now
from torch_gradcheck.training_step.judge import Judged
from torch_gradcheck.training_step.loss_scale import is_skipped, with_unscaled
from torch_gradcheck.training_step.replay import Regime, Replays, coarsest, replays_of
from torch_gradcheck.training_step.rounded_gradients import are_rounded
from torch_gradcheck.training_step.step import TrainingStep

UNSEEN = "Nobody saw the step's forward: let a monitor watch() it, or call the check under the step's autocast"


def replays_in_regimes(
    model: nn.Module,
    loss: Loss,
    theta: Theta,
    seed: int,
    step: TrainingStep,
    left: Mapping[int, AnalyticGradient],
) -> tuple[Replays | None, list[Replays]]:
    """The replays in the step's regime, and those in other regimes that it may have had where nobody saw.

    Args:
        model: what was trained, not lent.
        loss: the user's loss on the batches of the step.
        theta: the caller's own parameters.
        seed: of the noise.
        step: what is known of the training step.
        left: what `.grad` holds, by position in θ.
    """

    def run(regime: Regime) -> Replays | None:
        def again(each: Regime) -> Replays | None:
            return replays_of(model, loss, theta, each, seed, step.start)

        return with_unscaled(again, regime, step, theta, left)

    if step.autocast is not None or step.computed_in is not None:
        return run(Regime(step.autocast or autocast_now(), step.scaling.scale, step.computed_in)), []
    plain = run(Regime(autocast_now(), step.scaling.scale))
    if plain is None or fraction_alike(left, plain) > 0.5:
        return plain, []
    others = [replays for regime in _autocasts(theta, step.scaling.scale) if (replays := run(regime))]
    for replays in others:
        if is_seen(replays, left, plain) and _fraction_closer(left, replays, plain) > 0.5:
            return replays, []
    return plain, others


def is_seen(replays: Replays, left: Mapping[int, AnalyticGradient], plain: Replays) -> bool:
    """Whether `.grad` shows that it was computed under the autocast of these replays, and not under none."""
    return any(are_rounded(left, plain, dtype) for enabled, dtype in replays.regime.autocast.values() if enabled)


def decided_by_both(plain: Mapping[int, Judged], other: Mapping[int, Judged], regime: Regime) -> dict[int, Judged]:
    """Every `.grad` as judged without an autocast; undecided where it is wrong, and right by one that nobody saw."""
    reason = f"the step run again gives something else in float32, and under {regime} it may give this. {UNSEEN}"
    return {at: other[at] if other[at].is_wrong else each.undecided(True, reason) for at, each in plain.items()}


def is_left_open(row: ParameterReport) -> bool:
    """Whether a `.grad` that was compared is undecided: a loss scale spoilt it, or an unseen autocast explains it."""
    return is_skipped(row) or (row.status is Status.UNDECIDED and row.reason.endswith(UNSEEN))


def fraction_alike(gradients: Mapping[int, AnalyticGradient], replays: Replays) -> float:
    """The fraction of the parameters whose gradient is that of the plain replay, up to rounding."""
    with np.errstate(invalid="ignore"):
        within = [
            bool(np.max(np.abs(gradients[position].values - plain), initial=0.0) <= spread(plain, noisy).entry)
            for position, (plain, *noisy) in replays.gradients.items()
        ]
    return float(np.mean(within))


def distance_from_multiple(given: Floats, of: Floats) -> float:
    """The distance of a gradient from the nearest multiple of another; infinite where one is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        square = float(np.dot(of, of))
        factor = float(np.dot(given, of)) / square if square > 0 and len(of) > 1 else 1.0  # one number is any multiple
        return float(np.nan_to_num(np.linalg.norm(given - factor * of), nan=np.inf))


def _fraction_closer(left: Mapping[int, AnalyticGradient], replays: Replays, others: Replays) -> float:
    """The fraction of the parameters whose `.grad` is closer to a multiple of this replay than of the other."""
    closer = [
        distance_from_multiple(gradient.values, replays.gradients[position][0])
        < 0.5 * distance_from_multiple(gradient.values, others.gradients[position][0])
        for position, gradient in left.items()
    ]
    return float(np.mean(closer))


def _autocasts(theta: Theta, scale: float) -> list[Regime]:
    """The autocasts that a step over float32 parameters may have run under."""
    if coarsest(theta) is not torch.float32:
        return []
    device = theta[0].parameter.device.type
    return [Regime({device: (True, dtype)}, scale) for dtype in (torch.bfloat16, torch.float16)]
