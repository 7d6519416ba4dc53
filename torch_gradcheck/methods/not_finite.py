"""Refuses a J that is not a finite number, in words that say what to do."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch_gradcheck.errors import NonFiniteLossError
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.second_order import Slope

OF_FIRST_ORDER = "A check with order=1 names the operation that makes it."
"""What to do where a check of second order finds that something is not finite."""


def finite(evaluated: Callable[[], Objective], slope: Slope | None, perturb: float) -> Objective:
    """J after its first evaluations.

    Args:
        evaluated: makes J, and evaluates it.
        slope: what J is in a check of second order; else None.
        perturb: how far from the model's own θ it is evaluated.

    Raises:
        NonFiniteLossError: J, or the loss whose slope it is, is no finite number.
    """
    try:
        objective = evaluated()
    except NonFiniteLossError as error:
        if slope is not None and math.isfinite(float(slope.loss)):
            raise NonFiniteLossError(_has_no_slope(float(slope.loss)), module=error.module) from error
        if not perturb:
            raise
        raise NonFiniteLossError(f"{error} {_is_moved(perturb)}", module=error.module) from error
    if slope is not None and not math.isfinite(float(slope.loss)):
        raise NonFiniteLossError(f"order=2: J(θ) = {float(slope.loss)}. {OF_FIRST_ORDER}")
    return objective


def _has_no_slope(loss: float) -> str:
    return (
        f"order=2: J(θ) = {loss:.8g}, and its first-order gradient is not finite, so that it cannot be differenced. "
        f"{OF_FIRST_ORDER}"
    )


def _is_moved(perturb: float) -> str:
    return (
        f"This is with perturb={perturb:g}, away from the model's own θ: try a smaller one, or perturb=0 to see "
        "whether it is finite there."
    )
