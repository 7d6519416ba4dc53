"""Pages that stand at the root of the repository, and links that lead out of docs/, for the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""File at the root to page of the site."""

LINK = re.compile(r"\[`?(?P<name>[^\]`]+)`?\]\((?P<target>\.\./[^)#]+)[^)]*\)")
"""A link that climbs out of the folder of its page."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the root; what they link to in docs/ lies beside them here."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links to files of the repository that are no pages, such as programs of examples/, become their names."""
    folder = (DOCS / page.file.src_uri).parent

    def kept(link: re.Match[str]) -> str:
        is_page = (folder / link["target"]).resolve().is_relative_to(DOCS)
        return link[0] if is_page else f"`{link['name']}`"

    return LINK.sub(kept, markdown)
