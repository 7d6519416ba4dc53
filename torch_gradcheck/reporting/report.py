"""The report of a check: facts that can be printed, kept and raised."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch_gradcheck.errors import GradientMismatchError, InvalidRequestError, NothingProvenError
from torch_gradcheck.reporting.comparison.comparison import Comparison
from torch_gradcheck.reporting.document import from_document, from_text
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.plots.report_figure import figure_of
from torch_gradcheck.reporting.render.html import html
from torch_gradcheck.reporting.render.json_report import as_dict, as_json
from torch_gradcheck.reporting.render.outline import MAX_ROWS, headline, one_line, ratio_in_words
from torch_gradcheck.reporting.render.terminal import Page, page_of
from torch_gradcheck.reporting.render.text import text
from torch_gradcheck.reporting.saving import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType


class Report(Facts):
    """The result of a check; `print(report)` shows it as a table, a notebook in colour.

    Iteration, `len`, `report[name]` and `report[0]` give its `ParameterReport`s; see `Facts` for everything else it
    holds. Two reports are equal if they found the same: seconds and provenance do not count, and NaN equals NaN. Equal
    reports have equal hashes.
    """

    @property
    def headline(self) -> str:
        """The outcome in one line, the first of the text: "gradients WRONG in 2 of 4 parameters"."""
        return headline(self)

    @property
    def one_line(self) -> str:
        """The headline, and the culprit where there is one: "gradients WRONG in 2 of 4 parameters; culprit: norm"."""
        return one_line(self)

    def raise_if_failed(self, strict: bool = False) -> None:
        """Raises if a gradient is wrong, the contract is broken, or nothing was proven. The error's text is the table.

        Args:
            strict: raise as well where a checked parameter is flat, unused or undecided.

        Raises:
            GradientMismatchError: a gradient is wrong, of the reference too, or an entry of a function's contract has
                failed.
            NothingProvenError: none is wrong, and none is proven right (strict: not every one is).
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        if self.is_wrong:
            raise GradientMismatchError(self.text())
        if not (self.proven if strict else self.passed):
            raise NothingProvenError(self.text())

    def to_dict(self) -> dict[str, object]:
        """The whole report in JSON's types; docs/SCHEMA.md says what every key means."""
        return as_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict()` as strict JSON."""
        return as_json(self, indent)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The report whose `to_dict()` this is; equal to the one that was written.

        Raises:
            InvalidRequestError: it is no report, or of another version of docs/SCHEMA.md; says what is where.
        """
        return from_document(cls, document)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The report whose `to_json()` this is; equal to the one that was written.

        Raises:
            InvalidRequestError: it is no JSON, no report, or of another version of docs/SCHEMA.md; says what is where.
        """
        return from_text(cls, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The report in a `.json` file, written by `save`, `to_json` or the command.

        Raises:
            InvalidRequestError: the file holds no report that this version reads (the message names it), or `path` is
                no path.
            OSError: it cannot be read.
        """
        if not isinstance(path, str | os.PathLike):
            raise InvalidRequestError(f"a report is read from a path, not from a {type(path).__name__}.")
        content = Path(path).read_bytes()
        try:
            return from_text(cls, content)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str], title: str | None = None) -> None:
        """Writes the report as JSON or as a page, by the suffix of `path`: `.json` or `.html`.

        A file that is there is replaced once the new one is written whole.

        Args:
            path: of the file.
            title: of the page; None takes the name of the file.

        Raises:
            InvalidRequestError: another suffix, a directory, a path in a directory that does not exist, or a file that
                the system does not let be written.
        """
        save(self, path, title)

    def compare(self, old: Facts) -> Comparison:
        """What became of every row since an older report on the same model or function.

        A row became wrong if it is a mismatch and was none; it became right if it was one and is proven. It is worse if
        it is no longer proven, or if its relative error has more than doubled and grown by more than the error bars of
        both, so that noise changes nothing. It is better the other way round. Rows are the same if they have the same
        name, or one's name is an alias of the other.

        Args:
            old: the report of an earlier check, as `Report.load(path)` reads it.

        Raises:
            InvalidRequestError: `old` is no report.
        """
        if not isinstance(old, Facts):
            raise InvalidRequestError(
                f"a report is compared with another one, not with a {type(old).__name__}; Report.load(path) reads one."
            )
        return Comparison.of(self, old)

    def text(
        self,
        max_rows: int | None = MAX_ROWS,
        only_wrong: bool = False,
        width: int | None = None,
        color: bool = False,
        encoding: str | None = None,
    ) -> str:
        """The report as text, in the characters that standard output can encode; `print(report)` shows it in colour.

        Args:
            max_rows: how many wrong rows are shown and explained, and how many others at most; those left out are
                counted. None shows everything.
            only_wrong: only count the rows that are not wrong, and leave out why they are not proven.
            width: columns of a line, 40 at least. None: as many as the terminal has, or `COLUMNS` says; else 80.
            color: with ANSI escape codes.
            encoding: whose characters may be used, such as `"ascii"`; None: that of standard output.

        Raises:
            InvalidRequestError: `max_rows` is negative, or `width` is not positive.
        """
        if not _is_count(max_rows, at_least=0) or not _is_count(width, at_least=1):
            raise InvalidRequestError(
                f"max_rows={max_rows!r}, width={width!r}: rows are counted from 0 on (None for all), columns from 1 on."
            )
        page = page_of(sys.stdout)
        wanted = Page(width or page.width, color, encoding or page.encoding)
        return text(self, wanted, max_rows, only_wrong)

    def __str__(self) -> str:
        return text(self, page_of(sys.stdout))

    def __format__(self, spec: str) -> str:
        return format(self.text(), spec)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        page = Page(options.max_width, color=True, encoding=options.encoding)
        yield Text.from_ansi(text(self, page), no_wrap=True, overflow="ignore")

    def __repr__(self) -> str:
        return f"<Report: {self.one_line}; {ratio_in_words(self)}>"

    def plot(self) -> Figure:
        """A matplotlib figure: the gradient on trial against the right one row by row, and where wrong entries lie.

        At most 12 rows are drawn, wrong ones first, and heat maps of at most 3 wrong tensors. `figure.savefig(path)`
        writes it, a notebook shows it; pyplot knows nothing of it.

        Raises:
            InvalidRequestError: matplotlib is not installed.
        """
        return figure_of(self)

    def _repr_html_(self) -> str:
        return html(self)


def _is_count(value: object, at_least: int) -> bool:
    return value is None or (isinstance(value, int) and value >= at_least)
