"""Equality by content: NaN equals NaN, and times, which no two runs share, are left out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass

NAN = ("NaN",)
"""Stands for every NaN: `float("nan")` is equal to nothing, not even to itself."""


class Record:
    """Base of frozen dataclasses that are equal, with equal hashes, where their types and contents are.

    Fields of `field(compare=False)` take no part. A list is equal to a tuple of the same items, as JSON has it.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return content(self) == content(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(content(self))


def content(value: object) -> Hashable:
    """All that equality looks at in `value`, in a form that Python compares and hashes by itself."""
    if isinstance(value, float):
        return NAN if math.isnan(value) else value
    if isinstance(value, list | tuple):
        return tuple([content(item) for item in value])
    if isinstance(value, Mapping):
        return frozenset([(key, content(item)) for key, item in value.items()])
    if is_dataclass(value):
        compared = [field.name for field in fields(value) if field.compare]
        return (type(value), *[content(getattr(value, name)) for name in compared])
    assert isinstance(value, Hashable)
    return value
