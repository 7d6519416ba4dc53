"""The words of a `repr`: figures, shapes and messages on one line, whatever stands in them."""

from __future__ import annotations

from collections.abc import Sequence

from torch_gradcheck.reporting.printable import printable

LONGEST = 160
"""Characters of a message in a `repr`; the rest is an ellipsis."""


def in_one_line(message: str) -> str:
    """Returns `message` in one printable line of at most `LONGEST` characters."""
    line = printable(" ".join(message.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def shape_of(shape: Sequence[int]) -> str:
    """Returns a shape as the table writes it: `16×8`; `()` for a single number."""
    return "×".join(map(str, shape)) or "()"
