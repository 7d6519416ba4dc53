"""Lays out paragraphs and tables on a page, with rich, and gives them back as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from torch_gradcheck.reporting.render.encodable import encodable
from torch_gradcheck.reporting.render.terminal import Page

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

READABLE = 100
"""Columns at which prose is wrapped on a wider page."""

INDENT = 4

CODE = r"\x1b\[[0-9;]*m"
"""An escape code that sets colours, as a pattern."""

END_OF_LINE = re.compile(rf"(?: |{CODE})+$")


def rendered(renderables: Iterable[RenderableType], page: Page, *, is_table: bool = False) -> str:
    """Returns the text of `renderables`, laid out by rich for the page; its lines have no spaces at their end.

    Args:
        renderables: from top to bottom.
        page: its width, colours and characters.
        is_table: take all of the width; prose is wrapped where it can be read.
    """
    from rich.console import Console

    target = StringIO()
    console = Console(
        file=target,
        width=page.columns if is_table else min(page.columns, READABLE),
        color_system="standard" if page.color else None,
        force_terminal=page.color,
        force_jupyter=False,  # in a notebook rich would show it there and leave the page empty
        no_color=False,  # the page says whether there are colours
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    for renderable in renderables:
        console.print(renderable)
    lines = [_without_spaces_at_its_end(line) for line in target.getvalue().splitlines()]
    return encodable("\n".join(lines).strip("\n"), page.encoding)


def _without_spaces_at_its_end(line: str) -> str:
    end = END_OF_LINE.search(line)
    return line if end is None else line[: end.start()] + "".join(re.findall(CODE, end[0]))


def styled(words: str, style: str = "") -> Text:
    """Returns a paragraph in a style of rich, such as `"bold red"`."""
    from rich.text import Text

    return Text(words, style)


def indented(renderable: RenderableType) -> RenderableType:
    """Returns a paragraph or table moved to the right."""
    from rich.padding import Padding

    return Padding(renderable, (0, 0, 0, INDENT))


def bullets(lines: Sequence[tuple[str, str]], style: str = "") -> Table:
    """Returns paragraphs that hang behind their marks."""
    from rich.table import Table

    hanging = Table.grid(padding=(0, 1, 0, 0))
    for mark, words in lines:
        hanging.add_row(styled(mark, style), styled(words, style))
    return hanging
