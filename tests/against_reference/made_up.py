"""Tensors made up of numbers that are right but for rounding to a dtype, beside runs of a reference in that dtype."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.arrays import Floats
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.facts import Role

RUNS = 13


def rounded(values: Floats, dtype: torch.dtype = torch.bfloat16) -> Floats:
    """The values as that dtype holds them."""
    return np.asarray(torch.from_numpy(np.asarray(values, dtype=float)).to(dtype).double().numpy()).ravel()


def beside_runs(
    right: Floats,
    candidate: Floats | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    noise: Floats | float = 0.0,
    runs: Sequence[Floats] | None = None,
) -> Compared:
    """A tensor on trial; without `candidate` it is right but for one more rounding.

    Args:
        right: of the tensor's shape.
        candidate: its values, rounded here.
        dtype: of the candidate.
        seed: of the noise.
        noise: how far rounding in between moves each entry besides, one standard deviation.
        runs: of the reference; None makes some.
    """
    random, shape = np.random.default_rng(seed), right.shape

    def run(size: float) -> Floats:
        relative = 1 + size * epsilon(dtype) * random.uniform(-1, 1, shape)
        return rounded(right * relative + noise * random.normal(size=shape), dtype)

    given = run(0.3) if candidate is None else rounded(candidate, dtype)
    tensor = torch.zeros(shape, dtype=dtype)
    entry = ThetaEntry("x", (), tensor, True, False, np.empty(0, dtype=np.int64), dtype, Role.ARGUMENT)
    reference = [run(0.6) for _ in range(RUNS)] if runs is None else runs
    return Compared(entry, [given] * 3, right.ravel(), reference, True, epsilon(dtype))
