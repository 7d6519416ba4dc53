"""Keeps Python's random numbers: rich draws from them where it makes a style, first of all when it is imported."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_random() -> Iterator[None]:
    """A block after which `random` goes on as if nothing had been drawn in it: showing a report disturbs no run."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
