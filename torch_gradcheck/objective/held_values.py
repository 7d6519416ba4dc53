"""What is held at θ in an evaluation of J, and where in the user's code it left the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.code_lines import CodeLine


class Way(Enum):
    """The ways to take a value out of the graph."""

    DETACHED = "detached"
    WITHOUT_GRAD = "computed under no_grad"
    IN_BACKWARD = "computed by a backward without create_graph"
    READ = "read into Python"
    FROZEN = "read while its requires_grad is off"


@dataclass(frozen=True)
class Cut:
    """A place where the graph of J is cut.

    Attributes:
        way: how.
        line: of the user's code; None where Python does not tell.
    """

    way: Way
    line: CodeLine | None


@dataclass(frozen=True)
class HeldValue:
    """One value that is held.

    Attributes:
        cut: where it left the graph.
        reader: the operation that reads it.
        value: at θ; a number, or a copy of a tensor.
    """

    cut: Cut
    reader: str
    value: Any


@dataclass(eq=False)
class HeldValues:
    """The values that an evaluation at θ has recorded, for later evaluations to read.

    Attributes:
        values: in the order in which they are read.
        complete: whether they have been recorded.
        freed: cuts whose values move with θ all the same.
        strays: how many evaluations asked for other values.
    """

    values: list[HeldValue] = field(default_factory=list)
    complete: bool = False
    freed: frozenset[Cut] = frozenset()
    strays: int = 0

    @property
    def cuts(self) -> list[Cut]:
        """Where the graph is cut, each place once, in the order of the run."""
        return list(dict.fromkeys(held.cut for held in self.values))

    def but_for(self, cut: Cut) -> HeldValues:
        """The same values, of which those of one cut are free."""
        return HeldValues(self.values, complete=True, freed=self.freed | {cut})


MOST_LINES = 3
"""How many lines one sentence names, at most."""


def in_words(cuts: Sequence[Cut]) -> str:
    """Cuts as "detached at a.py:3 and b.py:7; computed under no_grad at c.py:1"."""
    lines: dict[Way, list[str]] = {}
    for cut in cuts:
        lines.setdefault(cut.way, []).append(str(cut.line) if cut.line else "a line that Python does not tell")
    return "; ".join(f"{way.value} at {listed(list(dict.fromkeys(at)), MOST_LINES)}" for way, at in lines.items())
