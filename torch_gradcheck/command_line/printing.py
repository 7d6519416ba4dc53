"""Prints to a stream of the shell, whatever it can encode and however early it is closed."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO


def print_to(stream: TextIO | None, text: str) -> None:
    """Prints, with "?" for letters that the stream's encoding lacks. A pipe that is closed early is no error."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="replace").decode(encoding), file=stream, flush=True)
    except OSError as error:
        _send_nowhere(stream)
        if not isinstance(error, BrokenPipeError):  # a disk that is full
            raise


def _send_nowhere(stream: TextIO) -> None:
    """Has the file behind a stream take everything: Python flushes it once more at its end."""
    with suppress(OSError):  # a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
