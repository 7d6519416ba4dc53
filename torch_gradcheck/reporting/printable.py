"""Makes names and prose of the caller's fit for a page: nothing in them moves the cursor or changes a colour."""

from __future__ import annotations


def prose(text: str) -> str:
    """Returns prose with its line breaks, each line printable."""
    return "\n".join(map(printable, text.splitlines()))


def printable(text: str) -> str:
    r"""Returns `text` with line breaks, escape sequences and other control characters spelled out (`\n`, `\x1b`)."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
