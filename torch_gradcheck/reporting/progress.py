"""A progress bar for long work, on a terminal with a person at it; it costs nothing anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from torch_gradcheck.reporting.kept_random import kept_random

if TYPE_CHECKING:
    from rich.progress import Progress

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


@contextmanager
def progress_bar(enabled: bool | None) -> Iterator[ProgressBar]:
    """Shows a bar on stderr while the block runs, and removes it when the block is left, however that happens.

    Args:
        enabled: True shows it at once, whatever stderr is. False shows nothing. None shows it after one second of
            work, where stderr is a terminal that can redraw a line.
    """
    if enabled is False or sys.stderr is None or (enabled is None and not _somebody_watches()):
        yield SILENT
        return
    bar = _Bar(patience=0.0 if enabled else PATIENCE)
    try:
        yield bar
    finally:
        bar.close()


def _somebody_watches() -> bool:
    """Returns True for a terminal with a person at it; False for logs, notebooks, CI and dumb terminals."""
    isatty = getattr(sys.stderr, "isatty", None)  # stderr may be a logger in disguise
    if isatty is None or not isatty():
        return False
    return os.environ.get("TERM") not in ("dumb", "unknown") and os.environ.get("CI", "") in ("", "0", "false")


class _Silent:
    def beat(self) -> None: ...

    def start(self, total: int, what: str) -> None: ...

    def at(self, what: str) -> None: ...

    def advance(self, n: int = 1) -> None: ...


SILENT: ProgressBar = _Silent()
"""Shows nothing."""


class _Bar:
    """Counts the units done and draws the bar, at most every `REDRAWN` seconds, in the thread that does the work."""

    def __init__(self, patience: float) -> None:
        self._began = monotonic()
        self._next_drawing = self._began + patience
        self._total: int | None = None
        self._done, self._what = 0, SETTING_UP
        self._drawn: Progress | None = None

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
        if self._drawn:
            self._drawn.stop()

    def _draw_if_due(self) -> None:
        now = monotonic()
        if now >= self._next_drawing:
            self._next_drawing = now + REDRAWN
            self._draw(self._time_left(now))

    def _draw(self, time_left: str) -> None:
        self._drawn = self._drawn or _rich_bar()
        [bar] = self._drawn.task_ids
        self._drawn.update(bar, completed=self._done, what=self._what, left=time_left)
        if self._total is not None:
            self._drawn.update(bar, total=self._total)
        self._drawn.start()  # does nothing the second time
        self._drawn.refresh()

    def _time_left(self, now: float) -> str:
        """Returns the time left in words, at the pace so far."""
        if self._total is None or not self._done:
            return ""
        seconds = round((now - self._began) * max(self._total - self._done, 0) / self._done)
        minutes, hours = seconds // 60, seconds // 3600
        if hours:
            return f"{hours} h {minutes % 60:02d} min left"
        return f"{minutes} min {seconds % 60:02d} s left" if minutes else f"{seconds} s left"


@kept_random()
def _rich_bar() -> Progress:
    """Returns rich's bar, not yet on the screen. No thread redraws it: a thread could outlive the work."""
    from rich.console import Console  # here and not above: rich is loaded only once something is shown
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    name = Column(width=30, no_wrap=True, overflow="ellipsis")
    progress = Progress(
        TextColumn("{task.fields[what]}", markup=False, table_column=name),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(file=sys.stderr, force_terminal=True, force_jupyter=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,  # sys.stdout stays the caller's
        redirect_stderr=False,
    )
    progress.add_task("", total=None, what="", left="")
    return progress
