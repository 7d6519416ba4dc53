"""The known names that a wrong one may have meant, for the end of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def close_names(name: str, known: Sequence[str]) -> str:
    """Returns a hint with the known names closest to a wrong one, as in "close names: weight"."""
    if not known:
        return "there are no names at all"
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    named = close or list(known[:5])
    more = "" if close or len(known) <= 5 else ", ..."
    return f"{'close' if close else 'known'} names: {', '.join(named)}{more}"
