"""The forms in which a report is written to a file; a new one is a module beside this one and a line of `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.html import page
from torch_gradcheck.reporting.render.json_report import as_json


@dataclass(frozen=True, slots=True)
class FileFormat:
    """One form of a file.

    Attributes:
        name: what a sentence calls it, as in "write the report as JSON too".
        write: makes the file's text from the facts and a title.
    """

    name: str
    write: Callable[[Facts, str], str]


FORMATS = {
    "json": FileFormat("JSON", lambda facts, _: as_json(facts, indent=2)),
    "html": FileFormat("a page", page),
}
"""The formats by the suffix of their files, which is also the name of the command's option."""
