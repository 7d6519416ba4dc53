"""Compares J of the check with the function that the training step computed: its random numbers, its buffers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from torch_gradcheck.borrowing.random_state import seed_everything
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.torch_internals.modules import is_compiled
from torch_gradcheck.training_step.error_bars import MARGIN
from torch_gradcheck.training_step.judge import ROUNDINGS
from torch_gradcheck.training_step.regimes import distance_from_multiple, fraction_alike
from torch_gradcheck.training_step.replay import Replays, coarsest
from torch_gradcheck.training_step.step import TrainingStep

DRAWS = 20
"""Times that a step's random numbers are drawn anew before a parameter counts as reached whatever is drawn."""

UNSEEN_GENERATOR = (
    "the training step drew from a random generator of its own, and nobody saw its state when the step began: only "
    "those that the model holds are seen"
)


def compared_with_step(
    objective: Objective,
    theta: Theta,
    step: TrainingStep,
    left: Mapping[int, AnalyticGradient],
    autograd_float64: Mapping[int, AnalyticGradient],
    replays: Replays | None,
) -> tuple[str, set[int]]:
    """The reason why J is not what the step computed, "" where it is; and parameters whose `.grad` is missing anyway.

    Args:
        objective: J of the check, its model lent.
        theta: the parameters.
        step: what is known of the training step.
        left: what `.grad` holds, by position in θ.
        autograd_float64: autograd's gradients of J in the precision of the check.
        replays: the step run again in its own precision.
    """
    drawn = objective.drawn()
    if step.start is not None and step.start.random is not None:
        seen = {id(generator) for generator in step.start.random.own}
        if any(id(generator) not in seen for generator in drawn.own):
            return UNSEEN_GENERATOR, set()
        numbers = "" if drawn.is_empty else _other_numbers(objective, theta, step, left, autograd_float64, replays)
        return numbers, set()
    if drawn.own:  # it is not for us to seed them, to see what is reached whatever is drawn
        return step.not_replayed(objective.model), set()
    if not drawn.is_empty or _reads_what_it_updates(objective, theta, autograd_float64):
        return step.not_replayed(objective.model), _always_reached(objective, theta, left)
    return "", set()


def _other_numbers(
    objective: Objective,
    theta: Theta,
    step: TrainingStep,
    left: Mapping[int, AnalyticGradient],
    autograd_float64: Mapping[int, AnalyticGradient],
    replays: Replays | None,
) -> str:
    """The reason why the random numbers of the check are not those of the step; "" where they are."""
    if replays is None:
        return "the training step was random, and could not be run again in its own precision to compare"
    if (step.compiled or is_compiled(objective.model)) and not _follow(left, replays):
        return "the training step was random and compiled: a compiler may draw other random numbers"
    if _same_loss(objective, theta, replays) and fraction_alike(autograd_float64, replays) > 0.5:
        return ""
    return (
        f"the training step was random, and J = {replays.losses[0]:.6g} in its own precision but "
        f"{objective.loss:.6g} in the check's with the same random state: other random numbers were drawn"
    )


def _follow(left: Mapping[int, AnalyticGradient], replays: Replays) -> bool:
    """Whether most of `.grad` is a multiple of the plain replay: the same random numbers were drawn."""
    close = [
        distance_from_multiple(gradient.values, replays.gradients[position][0])
        <= 0.1 * float(np.linalg.norm(gradient.values))
        for position, gradient in left.items()
    ]
    return float(np.mean(close)) > 0.5


def _same_loss(objective: Objective, theta: Theta, replays: Replays) -> bool:
    plain, *noisy = replays.losses
    rounding = 8 * epsilon(coarsest(theta, replays.regime)) * abs(plain)
    return bool(abs(plain - objective.loss) <= MARGIN * max(abs(loss - plain) for loss in noisy) + rounding)


def _always_reached(objective: Objective, theta: Theta, left: Mapping[int, AnalyticGradient]) -> set[int]:
    """Parameters without a `.grad` that J depends on however its random numbers fall."""
    missing = {position for position, gradient in left.items() if not gradient.reached}
    for draw in range(DRAWS if missing else 0):
        with torch.enable_grad(), objective.evaluation(at_theta=True):
            seed_everything(draw)
            gradients = theta_gradients(objective.compute, theta, epsilon(objective.dtype))
        missing = {position for position in missing if np.any(gradients[position].values)}
    return missing


def _reads_what_it_updates(
    objective: Objective, theta: Theta, autograd_float64: Mapping[int, AnalyticGradient]
) -> bool:
    """Whether the gradient is another after an evaluation, as spectral norm's is in training: J moves its buffers.

    Another by more than two runs from one state are, as far as these differ.
    """
    if objective.runs_backward:
        return False
    eps = epsilon(objective.dtype)
    with torch.enable_grad(), objective.evaluation(at_theta=True):
        first, second = (theta_gradients(objective.compute, theta, eps) for _ in range(2))
    return any(
        np.max(np.abs(first[at].values - second[at].values), initial=0.0)
        > max(ROUNDINGS * eps * np.max(np.abs(each.values)), autograd_float64[at].error_bar)
        for at, each in first.items()
        if len(each.values)
    )
