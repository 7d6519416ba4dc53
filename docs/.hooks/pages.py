"""What pages are in the site otherwise than in the repository: where they lie, their links, and titles of blocks."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/found_in_the_wild/README.md": "theory/found-in-the-wild-reports.md",
}
"""File outside of docs/ to page of the site."""

SOURCES = {page: source for source, page in PAGES.items()}

LINK = re.compile(r"\[(?P<name>[^\]]+)\]\((?P<target>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)]*)?\)")
"""A link to a file of the repository."""

FENCE = re.compile(r"^```python (?P<options>\S.*)$", re.MULTILINE)
"""The first line of a block of Python that has options for `tests/test_readme.py`."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Has links lead to where a page is in the site; those to what is no page, such as programs, become names."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        there = PAGES.get(target, target.removeprefix("docs/"))
        if target not in PAGES and not target.startswith("docs/"):
            return link["name"] if "`" in link["name"] else f"`{link['name']}`"
        return f"[{link['name']}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{link['anchor'] or ''})"

    return FENCE.sub(_titled, LINK.sub(led, markdown))


def _titled(fence: re.Match[str]) -> str:
    """The name of the file that a block stands for, where it has one, becomes its title."""
    options = dict(option.split("=") for option in fence["options"].split())
    name = options.get("file") or options.get("script")
    return f'```python title="{name}"' if name else "```python"
