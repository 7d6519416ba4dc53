"""Ng's ratio ‖approx − grad‖₂ / (‖approx‖₂ + ‖grad‖₂), over one tensor or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from torch_gradcheck.arrays import Floats, blocks

SQUARABLE = (1e-120, 1e140)
"""Largest entries between these need no scaling: squares do not overflow, and those that underflow do not matter."""


def relative_error(analytic: Floats, numeric: Floats) -> float:
    """Ng's ratio ‖approx − grad‖₂ / (‖approx‖₂ + ‖grad‖₂); 0 when both are zero, NaN or infinite when an entry is.

    Example: a gradient that is twice the right one has the ratio 1/3, a flipped sign 1.

    Source: Andrew Ng, Deep Learning Specialization, course 2, "Gradient checking".
    """
    return relative_error_over([(analytic, numeric)])


def relative_error_over(pairs: Iterable[tuple[Floats, Floats]]) -> float:
    """Ng's ratio over several tensors as one vector, from the norms of each: the vector is never built."""
    return _ratio([_lengths(analytic, numeric) for analytic, numeric in pairs])


def relative_error_and_noise(analytic: Floats, numeric: Floats, error_bar: Floats) -> tuple[float, float]:
    """Ng's ratio, and what error bars explain of it: ‖error bars‖₂ / (‖approx‖₂ + ‖grad‖₂), NaN where both are 0.

    Args:
        analytic: shape (N,), the gradient on trial.
        numeric: shape (N,), what it is compared with.
        error_bar: shape (N,), how far each entry may be off; infinite where nothing is known.
    """
    lengths = _lengths(analytic, numeric)
    size = lengths[1] + lengths[2]
    return _ratio([lengths]), _length(error_bar) / size if 0 < size < math.inf else math.nan


def _ratio(lengths_of_each: Sequence[tuple[float, float, float]]) -> float:
    """Ng's ratio from the lengths of the difference, of the gradient and of the right one, of each tensor."""
    lengths = np.array(lengths_of_each).reshape(-1, 3)
    # Divided by the largest length first: squares of lengths of 1e-200 would all be zero.
    scale = float(np.max(lengths, initial=0.0))
    if scale == 0.0:
        return 0.0
    off, grad, approx = np.linalg.norm(lengths / scale, axis=0)
    return float(off / (approx + grad))


def _length(values: Floats) -> float:
    """‖values‖₂ of numbers that are not negative, a block at a time; infinite where one is."""
    scale = float(np.max(values, initial=0.0))
    if scale == 0.0 or not math.isfinite(scale) or not any(values.strides):
        return scale * math.sqrt(len(values)) if scale else 0.0
    total = 0.0
    for block in blocks(len(values)):
        part = values[block] / scale
        total += float(part @ part)
    return scale * math.sqrt(total)


def _lengths(analytic: Floats, numeric: Floats) -> tuple[float, float, float]:
    """‖numeric − analytic‖₂, ‖analytic‖₂, ‖numeric‖₂."""
    scale = max((float(max(x.max(), -x.min())) for x in (analytic, numeric) if len(x)), default=0.0)
    if scale == 0.0:
        return 0.0, 0.0, 0.0
    scale = scale if not SQUARABLE[0] < scale < SQUARABLE[1] else 1.0
    off, grad, approx = (scale * math.sqrt(squares) for squares in _squares(analytic, numeric, scale))
    return off, grad, approx


def _squares(analytic: Floats, numeric: Floats, scale: float) -> Floats:
    """Σ (n − a)², Σ a² and Σ n² of both divided by a scale, a block at a time."""
    total = np.zeros(3)
    for block in blocks(len(analytic)):
        one, other = analytic[block] / scale, numeric[block] / scale
        total += [float(x @ x) for x in (other - one, one, other)]
    return total
