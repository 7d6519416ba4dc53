"""What `assert report == other` says where it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch_gradcheck

if TYPE_CHECKING:
    from torch_gradcheck import Report


def differences(operator: str, left: object, right: object) -> list[str] | None:
    """The lines that explain why two reports are not equal; None for anything else."""
    if operator != "==" or not (_is_of_ours(left) and _is_of_ours(right)):
        return None
    if not (isinstance(left, torch_gradcheck.Report) and isinstance(right, torch_gradcheck.Report)):
        return None
    return [f"{left!r} == {right!r}", *_unequal(left, right), *str(right.compare(left)).splitlines()]


def _is_of_ours(value: object) -> bool:
    """Whether a value is of a class of this package; no import is needed to tell that it is not."""
    return type(value).__module__.startswith(f"{torch_gradcheck.__name__}.")


def _unequal(left: Report, right: Report) -> list[str]:
    """The facts about both checks as a whole that differ."""
    one, other = left.to_dict(), right.to_dict()
    facts = [key for key, value in one.items() if isinstance(value, str | float | int | None) and key != "seconds"]
    return [f"{key}: {one[key]!r} != {other.get(key)!r}" for key in facts if one[key] != other.get(key)]
