"""What left NaN or infinity in `.grad`: an operation of J, the step's own precision, or what came after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from torch_gradcheck.diagnosis.non_finite.search import NonFinite, find_non_finite
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.training_step.loss_scale import SKIPPED
from torch_gradcheck.training_step.replay import Replays, coarsest


def on_non_finite(
    problem: Problem,
    left: Mapping[int, AnalyticGradient],
    autograd_float64: Mapping[int, AnalyticGradient],
    replays: Replays | None,
) -> NonFinite:
    """Notes on gradients that are not finite, and the culprit where it is an operation of J; empty where all are.

    Args:
        problem: J and θ, the model lent.
        left: what `.grad` holds, by position in θ.
        autograd_float64: the gradients of J in float64.
        replays: the step run again in its own precision; None where it was not.
    """
    spoilt = [position for position, gradient in left.items() if not np.isfinite(gradient.values).all()]
    if not spoilt:
        return NonFinite(None, ())
    if any(not np.isfinite(gradient.values).all() for gradient in autograd_float64.values()):
        return find_non_finite(problem) or NonFinite(None, ())
    here = "of the same batch in float64 is finite"
    if replays is None:
        return NonFinite(None, (f".grad holds NaN or infinity, and the gradient {here}",))
    if all(np.isfinite(replays.gradients[position][0]).all() for position in spoilt if position in replays.gradients):
        after = "what left it there is not this loss's backward: look at what is done to .grad after it"
        return NonFinite(None, (f".grad holds NaN or infinity; the step run again gives finite gradients: {after}",))
    if replays.unscaled is not None and all(np.isfinite(replays.unscaled.gradients[at][0]).all() for at in spoilt):
        scale = f"{replays.regime.scale:g}"
        return NonFinite(None, (f".grad holds NaN or infinity: the loss scale of {scale} overflows; {SKIPPED}",))
    dtype = coarsest(problem.theta, replays.regime)
    limit = f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:.6g}"
    return NonFinite(
        None,
        (
            f".grad holds NaN or infinity, as the step run again does, and the gradient {here}: the step's own "
            f"precision overflows ({limit}). Use a smaller loss scale, bfloat16 or float32",
        ),
    )
