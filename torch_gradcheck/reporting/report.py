"""The report of a check: facts that can be printed, kept and raised."""

from __future__ import annotations

from torch_gradcheck.errors import GradientMismatchError, NothingProvenError
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.html import html
from torch_gradcheck.reporting.render.json_report import as_dict, as_json
from torch_gradcheck.reporting.render.outline import headline, ratio_in_words
from torch_gradcheck.reporting.render.text import text


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
            raise GradientMismatchError(str(self))
        if not (self.proven if strict else self.passed):
            raise NothingProvenError(str(self))

    def to_dict(self) -> dict[str, object]:
        """The whole report in JSON's types; docs/SCHEMA.md says what every key means."""
        return as_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict()` as strict JSON."""
        return as_json(self, indent)

    def __str__(self) -> str:
        return text(self)

    def __repr__(self) -> str:
        return f"<Report: {headline(self)}; {ratio_in_words(self)}>"

    def _repr_html_(self) -> str:
        return html(self)
