"""How much of a long table the tests go through: a part of it each time, all of it before a release.

TORCH_GRADCHECK_SWEEPS=all pytest -n 2 --dist worksteal
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

ALL = os.environ.get("TORCH_GRADCHECK_SWEEPS") == "all"


def some_of(cases: Sequence[T], every: int, first: int = 0) -> list[T]:
    """Every so manieth case, from the first on; all of them before a release."""
    return list(cases) if ALL else list(cases[first::every])


def in_turn(cases: Sequence[tuple[Any, ...]], options: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Each case with one of the options in turn; with every one of them before a release."""
    if ALL:
        return [(*case, *option) for case in cases for option in options]
    return [(*case, *options[number % len(options)]) for number, case in enumerate(cases)]


EXAMPLES = 100 if ALL else 40
"""How many reports hypothesis makes for a property of all of them, each dear to draw and to render."""
