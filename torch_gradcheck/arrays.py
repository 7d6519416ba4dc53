"""The numpy arrays of numerical code, by dtype: Floats (float64), Indices (int64) and Flags (bool)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Indices = NDArray[np.int64]

Flags = NDArray[np.bool_]
