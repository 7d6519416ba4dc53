"""A progress bar for long work, on a terminal or in a notebook with a person at it; it costs nothing anywhere else."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, closing, nullcontext
from time import monotonic
from typing import Protocol

from torch_gradcheck.reporting.progress_screens import Screen, screen_in_notebook, screen_on_terminal
from torch_gradcheck.reporting.render.terminal import is_dumb, is_terminal

PATIENCE = 1.0
"""Seconds of work before a bar that nobody asked for is shown."""

SETTING_UP = "setting up"
"""What the bar says before the work that can be counted: J is evaluated, its noise is measured, it is recorded."""

REDRAWN = 0.1
"""Least time from one drawing of the bar to the next, in seconds."""


class ProgressBar(Protocol):
    """The calls by which work reports its progress."""

    def beat(self) -> None:
        """Says that work goes on, of which nobody knows how much there is: what comes before `start`."""

    def start(self, total: int, what: str) -> None:
        """Begins work of `total` units; those for `what`, a parameter name, come first."""

    def at(self, what: str) -> None:
        """Says that the units from now on are for `what`, a parameter name."""

    def advance(self, n: int = 1) -> None:
        """Says that `n` more units are done."""


def progress_bar(enabled: bool | None) -> AbstractContextManager[ProgressBar]:
    """Shows a bar on stderr while the block runs, and removes it when the block is left, however that happens.

    No generator: `contextmanager` writes to an exception that passes, and one of the user's may be frozen.

    Args:
        enabled: True shows it at once: in a notebook below its cell, elsewhere on stderr, whatever that is. False shows
            nothing. None shows it after one second of work, in a notebook or where stderr is a terminal that can redraw
            a line.
    """
    screen = _screen(enabled)
    return nullcontext(SILENT) if screen is None else closing(_Bar(screen, patience=0.0 if enabled else PATIENCE))


def _screen(enabled: bool | None) -> Screen | None:
    """Where the bar is drawn; None where there is none. Nobody watches logs, continuous integration, dumb terminals."""
    in_ci = os.environ.get("CI", "") not in ("", "0", "false")
    if enabled is False or (enabled is None and in_ci):
        return None
    notebook = screen_in_notebook()
    if notebook is not None:
        return notebook
    can_redraw = is_terminal(sys.stderr) and not is_dumb()
    return screen_on_terminal() if sys.stderr is not None and (enabled or can_redraw) else None


class _Silent:
    def beat(self) -> None: ...

    def start(self, total: int, what: str) -> None: ...

    def at(self, what: str) -> None: ...

    def advance(self, n: int = 1) -> None: ...


SILENT: ProgressBar = _Silent()
"""Shows nothing."""


class _Bar:
    """Counts the units done and draws the bar, at most every `REDRAWN` seconds, in the thread that does the work."""

    def __init__(self, screen: Screen, patience: float) -> None:
        self._screen = screen
        self._began = monotonic()
        self._next_drawing = self._began + patience
        self._total: int | None = None
        self._done, self._what = 0, SETTING_UP

    def beat(self) -> None:
        self._draw_if_due()

    def start(self, total: int, what: str) -> None:
        self._began = monotonic()
        self._total, self._done, self._what = total, 0, what
        self._draw_if_due()

    def at(self, what: str) -> None:
        self._what = what

    def advance(self, n: int = 1) -> None:
        self._done += n
        self._draw_if_due()

    def close(self) -> None:
        """Takes the bar off the screen."""
        self._screen.clear()

    def _draw_if_due(self) -> None:
        now = monotonic()
        if now >= self._next_drawing:
            self._next_drawing = now + REDRAWN
            self._screen.draw(self._what, self._done, self._total, self._time_left(now))

    def _time_left(self, now: float) -> str:
        """Returns the time left in words, at the pace so far."""
        if self._total is None or not self._done:
            return ""
        seconds = round((now - self._began) * max(self._total - self._done, 0) / self._done)
        minutes, hours = seconds // 60, seconds // 3600
        if hours:
            return f"{hours} h {minutes % 60:02d} min left"
        return f"{minutes} min {seconds % 60:02d} s left" if minutes else f"{seconds} s left"
