"""The default step of a centered difference, chosen from the noise of J alone."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.differences.noise import Noise


def first_step(noise: Noise) -> float:
    """The relative step that balances roundoff against truncation.

    The centered difference C(h) is off by σ/h from roundoff and by h²·f'''/6 from truncation. The sum is smallest at
    h = (3σ / f''')^(1/3). f''' is unknown; taken to be of the order of J, it gives h = (σ/J)^(1/3).

    Example: in float64 with σ = ε/2·|J| = 1.1e-16·|J|, h = 4.8e-6. At the lecture's 1e-7, roundoff alone is 1.1e-9·|J|.
    """
    scale = max(abs(noise.at_zero), np.finfo(np.float64).tiny)
    ratio = float(np.clip(noise.sigma / scale, noise.epsilon / 4, noise.epsilon * 1e3))
    return float(np.cbrt(ratio))
