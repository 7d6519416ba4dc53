"""What became of the faults: one row each, the share that would be found, and the forms it can be read in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from torch_gradcheck.planting.fragment import fragment
from torch_gradcheck.planting.table import Hidden, table
from torch_gradcheck.reporting.render.terminal import page_of


@dataclass(frozen=True, slots=True)
class BlindSpot:
    """One planted fault, and whether a check would find it.

    Attributes:
        module: qualified name of the module in whose backward it is; "" for the model itself.
        fault: what is wrong with its backward, such as "output gradient flipped".
        found: whether a check would report a mismatch.
        reason: why it would not; "" where it would.
    """

    module: str
    fault: str
    found: bool
    reason: str = ""


@dataclass(frozen=True, repr=False)
class BlindSpots:
    """All planted faults; iterates over its rows in the order of `named_modules()`, and prints as a table.

    Attributes:
        rows: one a fault.
        mode: `"eval"`, `"train"` or `"keep"`.
        seed: of what was drawn at random.
        perturb: how far from the model's own θ the faults were planted.
        notes: one sentence each on what the rows do not say.
    """

    rows: tuple[BlindSpot, ...]
    mode: str
    seed: int
    perturb: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The share of the faults that a check would find, from 0 to 1; 1 where there were none to plant."""
        return sum(row.found for row in self.rows) / len(self.rows) if self.rows else 1.0

    @property
    def hidden(self) -> list[BlindSpot]:
        """The rows of the faults that a check would not find."""
        return [row for row in self.rows if not row.found]

    def __iter__(self) -> Iterator[BlindSpot]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<BlindSpots: {len(self) - len(self.hidden):,} of {len(self):,} faults would be found; {self._where}>"

    def __str__(self) -> str:
        return table(self._told, len(self.rows), self._where, self.notes, page_of(sys.stdout))

    def _repr_html_(self) -> str:
        return fragment(self._told, len(self.rows), self._where, self.notes)

    @property
    def _told(self) -> list[Hidden]:
        return [(row.module, row.fault, row.reason) for row in self.hidden]

    @property
    def _where(self) -> str:
        return f"mode {self.mode}, seed {self.seed}" + (f", perturb {self.perturb:g}" if self.perturb else "")

    def to_dict(self) -> dict[str, object]:
        """Every field, and the score, in dicts, lists, strings, numbers and booleans, as JSON can hold them."""
        return {"score": self.score, **asdict(self), "rows": [asdict(row) for row in self.rows]} | {
            "notes": list(self.notes)
        }
