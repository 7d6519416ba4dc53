"""The comparison of two reports: what is different, to print and to ask."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Self

from torch_gradcheck.reporting.comparison.difference import Difference
from torch_gradcheck.reporting.comparison.entries import entries_compared
from torch_gradcheck.reporting.comparison.rows import rows_compared
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.comparison.html import html_of
from torch_gradcheck.reporting.render.comparison.outline import headline_of
from torch_gradcheck.reporting.render.comparison.text import text_of
from torch_gradcheck.reporting.render.terminal import page_of


class Comparison(Difference):
    """What `new.compare(old)` found; `print(comparison)` shows it as a table of the rows that are not as before.

    `became_wrong`, `became_right`, `worse`, `better`, `changed`, `only_old` and `only_new` are lists of row names.
    `bool(comparison)` is True where nothing became wrong and no row is gone, so that a test may say
    `assert new.compare(old)`.
    """

    __slots__ = ()

    @classmethod
    def of(cls, new: Facts, old: Facts) -> Self:
        """The comparison of an old report with a new one."""
        return cls(new, old, rows_compared(new, old), tuple(entries_compared(new, old)))

    @property
    def headline(self) -> str:
        """How many rows became wrong, worse, better, ..., in one line."""
        return headline_of(self)

    def to_dict(self) -> dict[str, object]:
        """The lists of names, whether something became wrong, and the conditions that differ, in JSON's types."""
        conditions = {name: list(values) for name, values in self.conditions.items()}
        names = {name: getattr(self, name) for name in LISTS}
        return {"regressed": self.regressed, **names, "conditions": conditions}

    def text(self, width: int | None = None) -> str:
        """The comparison as plain text; `print(comparison)` has colours on a terminal."""
        page = page_of(sys.stdout)
        return text_of(self, replace(page, width=width or page.width, color=False))

    def __str__(self) -> str:
        return text_of(self, page_of(sys.stdout))

    def __format__(self, spec: str) -> str:
        return format(self.text(), spec)

    def __repr__(self) -> str:
        return f"<Comparison: {self.headline}>"

    def _repr_html_(self) -> str:
        return html_of(self)


LISTS = (
    "became_wrong",
    "became_right",
    "worse",
    "better",
    "changed",
    "only_old",
    "only_new",
    "became_broken",
    "became_kept",
)
"""The lists of names of a comparison."""
