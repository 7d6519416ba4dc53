"""The report of a check: facts that can be printed, kept and raised."""

from __future__ import annotations

from torch_gradcheck.errors import GradientMismatchError
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.html import html
from torch_gradcheck.reporting.render.json_report import as_dict, as_json
from torch_gradcheck.reporting.render.outline import figure, headline
from torch_gradcheck.reporting.render.text import text


class Report(Facts):
    """The result of a check; `print(report)` shows it as a table, a notebook in colour.

    Iteration, `len` and `report[name]` give its `ParameterReport`s; see `Facts` for everything else it holds.
    """

    def raise_if_failed(self) -> None:
        """Raises GradientMismatchError, whose text is the table, if a gradient is wrong."""
        if not self.passed:
            raise GradientMismatchError(str(self))

    def to_dict(self) -> dict[str, object]:
        """The whole report in JSON's types; docs/SCHEMA.md says what every key means."""
        return as_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict()` as strict JSON."""
        return as_json(self, indent)

    def __str__(self) -> str:
        return text(self)

    def __repr__(self) -> str:
        return f"<Report: {headline(self)}; relative error {figure(self.relative_error)} ({self.verdict})>"

    def _repr_html_(self) -> str:
        return html(self)
