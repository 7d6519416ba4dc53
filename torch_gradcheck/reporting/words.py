"""Names in sentences: a few of many listed, and the known names closest to a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def listed(names: Sequence[T], most: int = 3, in_words: Callable[[T], str] = str) -> str:
    """The first `most` names, each written by `in_words`, and how many more there are: "a, b, c and 4 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(in_words, names[:most])) + more


def close_names(name: str, known: Sequence[str]) -> str:
    """A hint with the known names closest to a wrong one."""
    if not known:
        return "there are no names at all"
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    listed = close or list(known[:5])
    more = "" if close or len(known) <= 5 else ", ..."
    return f"{'close' if close else 'known'} names: {', '.join(listed)}{more}"
