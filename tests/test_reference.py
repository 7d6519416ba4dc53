"""The reference in docs/reference/ has every public name; that what it lists exists is seen when the site is built."""

from __future__ import annotations

import re
from inspect import getmembers, isclass
from pathlib import Path

import torch_gradcheck
from torch_gradcheck import errors

PAGES = (Path(__file__).parents[1] / "docs" / "reference").glob("*.md")
LISTED = {name for page in PAGES for name in re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), re.M)}
OF_ERRORS = {name for name, kind in getmembers(errors, isclass) if kind.__module__ == errors.__name__}


def test_every_public_name_is_in_the_reference() -> None:
    public = set(torch_gradcheck.__all__) - {"__version__"}

    assert "torch_gradcheck.errors" in LISTED  # with everything that is in it
    assert {name for name in public - OF_ERRORS if f"torch_gradcheck.{name}" not in LISTED} == set()
