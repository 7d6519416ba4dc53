"""The page that a stream shows: how wide it is, whether it has colours, and which characters it can encode."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from typing import Any

from torch_gradcheck.reporting.kept_random import kept_random

WIDTH = 80
"""Columns where no terminal says how many it has: equal facts give equal text."""

NARROWEST = 40
"""Columns below which no text is laid out: narrower pages get lines of this width."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a text is laid out for.

    Attributes:
        width: columns of a line, at most; `NARROWEST` at least.
        color: whether ANSI escape codes give it colours.
        encoding: of the characters that may be used, as Python names it.
    """

    width: int = WIDTH
    color: bool = False
    encoding: str = "utf-8"

    @property
    def columns(self) -> int:
        """The width that lines are laid out for."""
        return max(self.width, NARROWEST)

    def can_show(self, text: str) -> bool:
        """Whether the encoding has all of these characters."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return False
        return True


def page_of(stream: Any) -> Page:
    """Returns the page of a stream such as `sys.stdout`, which may be None, closed or no file at all.

    The width is `COLUMNS`, else that of the terminal, else 80. Only a terminal has colours, unless the variable
    `FORCE_COLOR` asks for them; none has where `NO_COLOR` is set, or `TERM` is `dumb`.
    """
    on_terminal = is_terminal(stream)
    return Page(_width(stream, on_terminal), _has_color(stream, on_terminal), _encoding(stream))


def is_terminal(stream: Any) -> bool:
    """Whether a stream says that it is a terminal; it may be None, closed or no file at all."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # no stream, or a closed one
        return False


def is_dumb() -> bool:
    """Whether terminals here only print: without colours, and without going back in a line."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def _width(stream: Any, on_terminal: bool) -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    if not on_terminal:
        return WIDTH
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except (AttributeError, ValueError, OSError):
        return WIDTH


def _has_color(stream: Any, on_terminal: bool) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    if not on_terminal or is_dumb():
        return False
    return not type(stream).__module__.startswith("idlelib") and not _is_old_console()


@kept_random()
def _is_old_console() -> bool:
    """Whether this is a console of Windows that prints escape codes as they are."""
    if os.name != "nt":
        return False
    from rich.console import detect_legacy_windows

    return detect_legacy_windows()


def _encoding(stream: Any) -> str:
    try:
        return codecs.lookup(stream.encoding).name
    except (AttributeError, TypeError, ValueError, LookupError):  # a StringIO has none, nor what has been detached
        return "utf-8"
