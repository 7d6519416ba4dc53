"""What is released says the same version everywhere."""

from __future__ import annotations

import re
from pathlib import Path

from torch_gradcheck.version import __version__

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", text, re.MULTILINE)[1] == __version__  # type: ignore[index]


def test_the_changelog_has_this_version_first() -> None:
    versions = re.findall(r"^## \[?(\d[^\]\s]*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[:1] == [__version__]


def test_readme_stays_short() -> None:
    """What is longer belongs on a page of docs/."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250
