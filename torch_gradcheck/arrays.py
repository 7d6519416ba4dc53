"""The arrays that numerical code passes on: float64 numbers, indices and flags."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Indices = NDArray[np.int64]

Flags = NDArray[np.bool_]
