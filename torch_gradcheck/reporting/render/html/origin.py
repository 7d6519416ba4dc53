"""The last section of a page: what the report was made with, and how to make it again."""

from __future__ import annotations

from dataclasses import dataclass

from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.printable import printable


@dataclass(frozen=True, slots=True)
class Origin:
    """Lines of a name and a value each, and the call or command that makes the check again."""

    lines: tuple[tuple[str, str], ...]
    again: str


def origin_of(facts: Facts) -> Origin | None:
    """Returns the section; None where nothing is known, as of a report within another one."""
    made = facts.provenance
    if made is None:
        return None
    versions = (("torch_gradcheck", made.torch_gradcheck), ("torch", made.torch), ("NumPy", made.numpy))
    lines = (
        ("model", made.model),
        ("date", f"{made.date} (UTC)" if made.date else ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in (*versions, ("Python", made.python)))),
        ("devices", ", ".join(made.devices)),
        ("machine", ", ".join(filter(None, (made.platform, made.processor)))),
        ("seed", str(facts.seed)),
    )
    return Origin(tuple((name, printable(value)) for name, value in lines if value), printable(made.again))
