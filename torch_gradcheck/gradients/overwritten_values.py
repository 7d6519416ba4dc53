"""What a backward needs and finds written to: told with the line that has written, and what to write instead."""

from __future__ import annotations

from torch_gradcheck.torch_internals.written_tensors import Overwritten, Write, WriteWatch

MOST = 3
"""Writes that are told of."""

ADVICE = "Compute a new tensor there, as y = y + 1 in place of y += 1, or write to a copy, by .clone()."


def of_overwritten(found: Overwritten, watch: WriteWatch) -> str:
    """What was written to, by which lines, and what to do."""
    source = f", the output of {found.node}," if found.node else ""
    writes = list(dict.fromkeys([_in_words(write) for write in watch.of(found)]))[:MOST]
    by = f" by {' and '.join(writes)}" if writes else ""
    return (
        f"a tensor of shape {found.shape}{source} is kept for the backward and was written to before that{by} "
        "(torch says: one of the variables needed for gradient computation has been modified by an inplace operation). "
        f"{ADVICE}"
    )


def _in_words(write: Write) -> str:
    line = "" if write.line is None else f" at {write.line}"
    return f"{write.function}{line}{f', in {write.place}' if write.place else ''}"
