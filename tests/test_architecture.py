"""docs/architecture.md names the floors as they are held, and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_floors import FLOORS, ROOT

TEXT = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+(?:\.py|\.md|/))`", TEXT)))


def test_the_table_has_every_room_on_its_floor() -> None:
    floors: dict[int, set[str]] = {}
    for number, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", TEXT, flags=re.MULTILINE):
        floors.setdefault(int(number), set()).update(re.findall(r"`(\w+)`", rooms))
    assert [floors[number] for number in sorted(floors)] == [set(line.split()) for line in FLOORS.strip().splitlines()]


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_exists(name: str) -> None:
    inside = [path for place in ("", "reporting", "diagnosis") if (path := ROOT / place / name).exists()]
    assert inside or (ROOT.parent / name).exists()
