"""How much of a long table the tests go through: a part of it each time, all of it before a release.

TORCH_GRADCHECK_SWEEPS=all pytest -n 2 --dist worksteal
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

ALL = os.environ.get("TORCH_GRADCHECK_SWEEPS") == "all"


def some_of(cases: Sequence[T], every: int, first: int = 0) -> list[T]:
    """Every so manieth case, from the first on; all of them before a release."""
    return list(cases) if ALL else list(cases[first::every])
