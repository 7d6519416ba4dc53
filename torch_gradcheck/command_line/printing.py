"""Prints to a stream of the shell, whatever it can encode and however early it is closed."""

from __future__ import annotations

import os
from typing import TextIO


def print_to(stream: TextIO | None, text: str) -> None:
    """Prints, with "?" for letters that the stream's encoding lacks. A pipe that is closed early is no error."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="replace").decode(encoding), file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes it once more at its end
        if not isinstance(error, BrokenPipeError):  # a disk that is full
            raise
