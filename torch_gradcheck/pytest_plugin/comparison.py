"""What `assert report == other` says where it fails."""

from __future__ import annotations

from dataclasses import fields
from types import UnionType
from typing import Any

import torch_gradcheck
from torch_gradcheck.pytest_plugin.frames import is_of_package

PLAIN = str | float | int | None
"""Facts that fit on a line."""

SIDES = "left of == is called new, right of it old:"


def differences(operator: str, left: object, right: object) -> list[str] | None:
    """The lines that explain why two reports are not equal; None for anything else.

    pytest shows eight of them, and all with -vv: so what became wrong comes first.
    """
    if operator != "==" or not (is_of_package(left) and is_of_package(right)):
        return None
    if not (isinstance(left, torch_gradcheck.Report) and isinstance(right, torch_gradcheck.Report)):
        return None
    told = left.compare(right).text(width=80).splitlines()
    return [f"{left!r} == {right!r}", SIDES, *told, *_unequal(left, right)]


def _unequal(left: torch_gradcheck.Report, right: torch_gradcheck.Report) -> list[str]:
    """The facts that differ: those on both checks as a whole, then those on the rows that both have."""
    facts = [f"{name}: {getattr(left, name)!r} != {getattr(right, name)!r}" for name in _apart(left, right, PLAIN)]
    pairs = [(row, right[row.name]) for row in left if row.name in right]
    rows = [(one.name, _apart(one, other, object)) for one, other in pairs]
    return [*facts, *(f"row {name}: {', '.join(apart)} differ" for name, apart in rows if apart)]


def _apart(one: Any, other: Any, kind: type | UnionType) -> list[str]:
    """The names of the facts of this kind that equality looks at and that differ."""
    names = [field.name for field in fields(one) if field.compare and isinstance(getattr(one, field.name), kind)]
    return [name for name in names if repr(getattr(one, name)) != repr(getattr(other, name))]
