"""Loads rich, which draws from Python's random numbers when it is first imported, and leaves these as they were."""

from __future__ import annotations

import random


def load_rich() -> None:
    """Imports of rich draw nothing after this call; a script that goes on drawing is not disturbed by a report."""
    state = random.getstate()
    try:
        pass  # here and not above: importing torch_gradcheck must stay quick
    finally:
        random.setstate(state)
