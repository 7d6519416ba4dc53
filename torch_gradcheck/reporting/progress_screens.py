"""Where a progress bar is drawn: a line of stderr, by rich, or an output of a notebook's cell, by IPython."""

from __future__ import annotations

import sys
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from torch_gradcheck.reporting.kept_random import kept_random

if TYPE_CHECKING:
    from rich.progress import Progress


class Screen(Protocol):
    """A place for one bar, which is empty until something is drawn."""

    def draw(self, what: str, done: int, total: int | None, time_left: str) -> None:
        """Shows how much is done of a total, which may not be known, and what is being done."""

    def clear(self) -> None:
        """Takes the bar away."""


def screen_on_terminal() -> Screen:
    """A line of stderr."""
    return _Line()


def screen_in_notebook() -> Screen | None:
    """An output of the cell that runs; None where this is no notebook. IPython is not imported to find that out."""
    ask = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if ask is None else ask()
    return _Output() if getattr(shell, "kernel", None) is not None else None  # a shell in a terminal has no kernel


class _Line:
    def __init__(self) -> None:
        self._drawn: Progress | None = None

    def draw(self, what: str, done: int, total: int | None, time_left: str) -> None:
        self._drawn = self._drawn or _rich_bar()
        [bar] = self._drawn.task_ids
        self._drawn.update(bar, completed=done, what=what, left=time_left)
        if total is not None:
            self._drawn.update(bar, total=total)
        self._drawn.start()  # does nothing the second time
        self._drawn.refresh()

    def clear(self) -> None:
        if self._drawn:
            self._drawn.stop()


class _Output:
    """An output that is replaced in place. It needs IPython alone, and no widgets, which notebooks often lack."""

    def __init__(self) -> None:
        self._shown: Any = None

    def draw(self, what: str, done: int, total: int | None, time_left: str) -> None:
        share = "" if total is None else f' value="{min(done, total)}" max="{max(total, 1)}"'
        percent = "" if not total else f"{min(done / total, 1):.0%}"
        words = " ".join(filter(None, (escape(what), f"<progress{share}></progress>", percent, time_left)))
        self._show(f'<div style="font-family: monospace; white-space: nowrap">{words}</div>')

    def clear(self) -> None:
        if self._shown is not None:
            self._show("")

    @kept_random()
    def _show(self, source: str) -> None:
        from IPython.display import HTML, display

        if self._shown is None:
            self._shown = display(HTML(source), display_id=True)
        else:
            self._shown.update(HTML(source))


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
