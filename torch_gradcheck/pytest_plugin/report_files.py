"""The directory of `--gradcheck-report`: a page and a JSON file a check, and an index of all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from html import escape
from pathlib import Path
from urllib.parse import quote

import torch_gradcheck
from torch_gradcheck.pytest_plugin.outcome import Outcome, named

LONGEST = 100
"""Characters of a test's id that the name of its files has."""

SUFFIXES = ("html", "json")

INDEX = "index.html"

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #8884; padding: .35rem .7rem .35rem 0; text-align: left; vertical-align: top; }
td.test { min-width: 24rem; font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.passed, .failed { color: #fff; border-radius: .3rem; padding: .05rem .5rem; }
.passed { background: #00795c; }
.failed { background: #c03d00; }
"""


def file_name(test: str, number: int) -> str:
    """The name of a check's files, without suffix: plain letters of the test's id, and a hash of the whole id.

    It is a name on every file system: without regard to capital letters and marks, the hash tells two tests apart.
    """
    letters = re.sub(r"[^A-Za-z0-9_.]+", "-", test)[-LONGEST:].strip("-.")
    name = f"{letters}-{sha256(test.encode(errors='surrogatepass')).hexdigest()[:8]}".lstrip("-")
    return name if number == 1 else f"{name}-{number}"


def write_report(report: torch_gradcheck.Report, directory: Path, test: str, number: int) -> str:
    """Writes a report in all forms, with the command that runs its test again; returns their name, without suffix.

    Raises:
        InvalidRequestError: a file cannot be written.
    """
    name = file_name(test, number)
    if report.provenance is not None:
        report = replace(report, provenance=replace(report.provenance, again=f"pytest {shlex.quote(test)}"))
    with suppress(OSError):  # what is wrong with it, `save` says
        directory.mkdir(parents=True, exist_ok=True)
    for suffix in SUFFIXES:
        report.save(directory / f"{name}.{suffix}", title=test)
    return name


def write_index(outcomes: Sequence[Outcome], directory: Path) -> Path:
    """Writes the page that lists all checks of a session; raises OSError where it cannot be written."""
    index = directory / INDEX
    directory.mkdir(parents=True, exist_ok=True)
    index.write_text(_page(outcomes), encoding="utf-8", errors="xmlcharrefreplace")
    return index


def _page(outcomes: Sequence[Outcome]) -> str:
    failed = sum(not outcome.passed for outcome in outcomes)
    title = f"{len(outcomes):,} gradient check{'s' * (len(outcomes) != 1)}, {failed:,} failed"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            "<table><thead><tr><th></th><th>test</th><th>outcome</th><th></th></tr></thead><tbody>",
            *_rows(outcomes),
            "</tbody></table></body></html>\n",
        ]
    )


def _rows(outcomes: Iterable[Outcome]) -> list[str]:
    return [
        f'<tr><td><span class="{word}">{word}</span></td><td class="test">{_linked(outcome)}</td>'
        f"<td>{escape(outcome.said)}</td><td>{_json(outcome)}</td></tr>"
        for outcome in outcomes
        for word in ("passed" if outcome.passed else "failed",)
    ]


def _linked(outcome: Outcome) -> str:
    title = escape(named(outcome))
    return f'<a href="{quote(outcome.file)}.html">{title}</a>' if outcome.file else title


def _json(outcome: Outcome) -> str:
    return f'<a href="{quote(outcome.file)}.json">JSON</a>' if outcome.file else ""
