"""Whether a `.grad` shows that an autocast computed it: all digits beyond those of a lower precision are zero."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.training_step.replay import Replays

ENOUGH = 8
"""Entries needed: a float32 has its last 16 digits zero once in 65,536 times."""


def are_rounded(left: Mapping[int, AnalyticGradient], plain: Replays, dtype: torch.dtype) -> bool:
    """Whether the numbers of one parameter, at least, are such of a lower precision, where a plain step's are not.

    A layer under autocast gives its weight a gradient in the lower precision, which is kept in that of the weight. A
    loss scale that is a power of 2 leaves the digits as they are.

    Args:
        left: what `.grad` holds, by position in θ.
        plain: the step run again without an autocast.
        dtype: of the autocast.
    """
    return any(
        _is_rounded(left[position].values, dtype) and not _is_rounded(run, dtype)
        for position, (run, *_) in plain.gradients.items()
        if position in left
    )


def _is_rounded(values: Floats, dtype: torch.dtype) -> bool:
    numbers = values[np.isfinite(values) & (values != 0)]
    significands = np.frexp(numbers)[0] * 2 / torch.finfo(dtype).eps
    return len(numbers) >= ENOUGH and bool(np.all(significands == np.round(significands)))
