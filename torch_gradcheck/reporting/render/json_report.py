"""A report as JSON; docs/SCHEMA.md says what every key means."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum

from torch_gradcheck.reporting.facts import Facts

SCHEMA_VERSION = 2
"""Version of the keys. It grows when a key goes away or changes its meaning; a new key leaves it."""


def as_json(facts: Facts, indent: int | None = None) -> str:
    """Returns `as_dict` as strict JSON, without bare NaN or Infinity."""
    return json.dumps(as_dict(facts), indent=indent, allow_nan=False)


def as_dict(facts: Facts) -> dict[str, object]:
    """Returns every field of the facts, and what follows from them, in dicts, lists, strings, numbers and None.

    A float that JSON has no number for is the string `"nan"`, `"inf"` or `"-inf"`; `float()` reads all three.
    """
    return {"schema_version": SCHEMA_VERSION, **_outcome(facts), **fields_in_json(facts)}


def _outcome(facts: Facts) -> dict[str, object]:
    """Returns what follows from the facts, under its keys."""
    return {
        "passed": facts.passed,
        "proven": facts.proven,
        "verdict": _in_json(facts.verdict),
        "mismatches": [row.name for row in facts.mismatches],
    }


def fields_in_json(row: object) -> dict[str, object]:
    """Returns a dataclass as a dict of its fields in JSON's own types."""
    assert is_dataclass(row)
    return {field.name: _in_json(getattr(row, field.name)) for field in fields(row)}


def _in_json(value: object) -> object:
    """Returns `value`, of a report or a dataclass of figures, in JSON's own types: see `as_dict`."""
    if isinstance(value, Facts):
        return as_dict(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, tuple | list):
        return [_in_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _in_json(item) for key, item in value.items()}
    return fields_in_json(value) if is_dataclass(value) else value
