"""The step of a centered difference where nothing but the noise of J is known."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.differences.noise import Noise


def first_step(noise: Noise) -> float:
    """The relative step that balances roundoff against truncation where nothing is known but the noise of J.

    C(h) is off by σ/h from roundoff and by h²·f'''/6 from truncation; the sum is smallest at h = (3σ / f''')^(1/3).
    With f''' of the order of J that is (σ/J)^(1/3), near 1e-5 in float64, where the lecture's 1e-7 is all roundoff.
    """
    scale = max(abs(noise.at_zero), np.finfo(np.float64).tiny)
    ratio = float(np.clip(noise.sigma / scale, noise.epsilon / 4, noise.epsilon * 1e3))
    return float(np.cbrt(ratio))
