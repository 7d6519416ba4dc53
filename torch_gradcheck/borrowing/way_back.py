"""The way back from what was changed: steps that are undone in reverse, whatever becomes of one of them."""

from __future__ import annotations

from collections.abc import Callable

Steps = list[Callable[[], None]]
"""What undoes each change, in the order of the changes."""


def go_back(steps: Steps) -> None:
    """Undoes the changes, the last one first, and forgets the steps; whatever goes wrong with one, others come back."""
    try:
        while steps:
            steps.pop()()
    finally:
        if steps:
            go_back(steps)
