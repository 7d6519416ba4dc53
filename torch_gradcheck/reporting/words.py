"""Names in sentences: a few of many listed, and the known names closest to a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def close_names(name: str, known: Sequence[str]) -> str:
    """A hint with the known names closest to a wrong one."""
    if not known:
        return "there are no names at all"
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    listed = close or list(known[:5])
    more = "" if close or len(known) <= 5 else ", ..."
    return f"{'close' if close else 'known'} names: {', '.join(listed)}{more}"
