"""The report of a check: facts that can be printed, kept and raised."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch_gradcheck.errors import GradientMismatchError, InvalidRequestError, NothingProvenError
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.html import html
from torch_gradcheck.reporting.render.json_report import as_dict, as_json
from torch_gradcheck.reporting.render.outline import MAX_ROWS, headline, ratio_in_words
from torch_gradcheck.reporting.render.terminal import Page, page_of
from torch_gradcheck.reporting.render.text import text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


class Report(Facts):
    """The result of a check; `print(report)` shows it as a table, a notebook in colour.

    Iteration, `len` and `report[name]` give its `ParameterReport`s; see `Facts` for everything else it holds.
    """

    def raise_if_failed(self, strict: bool = False) -> None:
        """Raises if a gradient or the contract is wrong, or nothing was proven; the text of the error is the table.

        Args:
            strict: raise as well where a checked parameter is flat, unused or undecided.

        Raises:
            GradientMismatchError: a gradient is wrong, of the reference too, or an entry of a function's contract has
                failed.
            NothingProvenError: none is wrong, and none is proven right (strict: not every one is).
        """
        if self.mismatches or self.broken or self.has_wrong_reference:
            raise GradientMismatchError(self.text())
        if not (self.proven if strict else self.passed):
            raise NothingProvenError(self.text())

    def to_dict(self) -> dict[str, object]:
        """The whole report in JSON's types; docs/SCHEMA.md says what every key means."""
        return as_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict()` as strict JSON."""
        return as_json(self, indent)

    def text(
        self,
        max_rows: int | None = MAX_ROWS,
        only_wrong: bool = False,
        width: int | None = None,
        color: bool = False,
    ) -> str:
        """The report as text, in the characters that standard output can encode; `print(report)` shows it in colour.

        Args:
            max_rows: how many wrong rows are shown and explained, and how many others at most; those left out are
                counted. None shows everything.
            only_wrong: only count the rows that are not wrong, and leave out why they are not proven.
            width: columns of a line, 40 at least. None: as many as the terminal has, or `COLUMNS` says; else 80.
            color: with ANSI escape codes.

        Raises:
            InvalidRequestError: `max_rows` is negative, or `width` is not positive.
        """
        if (max_rows is not None and max_rows < 0) or (width is not None and width < 1):
            raise InvalidRequestError(
                f"max_rows={max_rows}, width={width}: rows are counted from 0 on (None for all), columns from 1 on."
            )
        page = page_of(sys.stdout)
        return text(self, replace(page, width=width or page.width, color=color), max_rows, only_wrong)

    def __str__(self) -> str:
        return text(self, page_of(sys.stdout))

    def __format__(self, spec: str) -> str:
        return format(self.text(), spec)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        page = Page(options.max_width, color=True, encoding=options.encoding)
        yield Text.from_ansi(text(self, page), no_wrap=True, overflow="ignore")

    def __repr__(self) -> str:
        return f"<Report: {headline(self)}; {ratio_in_words(self)}>"

    def _repr_html_(self) -> str:
        return html(self)
