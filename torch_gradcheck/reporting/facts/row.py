"""What a check found of one tensor, as a typed frozen row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from torch_gradcheck.reporting.facts.content import Record
from torch_gradcheck.reporting.facts.diagnosis import Diagnosis
from torch_gradcheck.reporting.facts.one_line import shape_of
from torch_gradcheck.reporting.facts.pairs import Pairs
from torch_gradcheck.reporting.facts.status import Status, Verdict
from torch_gradcheck.reporting.printable import printable


class Role(StrEnum):
    """What a tensor on trial is to J; `reporting.words` has the nouns."""

    PARAMETER = "parameter"
    """A parameter of the model."""
    INPUT = "input"
    """A tensor of the batch."""
    CAPTURED = "captured"
    """A tensor that a closure captures."""
    ARGUMENT = "argument"
    """An argument of a function."""
    OUTPUT = "output"
    """What a candidate returns, beside what its reference does: not a gradient."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Coordinate(Record):
    """One entry of a parameter: its place, the gradient on trial, and the numeric derivative beside it.

    Attributes:
        index: position in the parameter's shape; `()` for a 0-dim parameter.
        analytic: the gradient on trial at this entry.
        numeric: the centered difference of J, refined where the first one disagreed.
        noise: the error bar of `numeric`, in the same unit.
        status: `match`, `mismatch`, `kink` or `undecided`.
        part: `"real"` or `"imag"` for an entry of a complex parameter, else None.
        slopes: the left and right slope of J where they differ (a kink), else None.
    """

    index: tuple[int, ...]
    analytic: float
    numeric: float
    noise: float
    status: Status
    part: str | None = None
    slopes: tuple[float, float] | None = None

    @property
    def in_bars(self) -> float:
        """|analytic − numeric| in multiples of the error bar; infinite where it is no number, or the bar is 0."""
        off = abs(self.analytic - self.numeric)
        if not off:
            return 0.0
        return off / self.noise if math.isfinite(off) and self.noise else math.inf

    def __repr__(self) -> str:
        part = f" {self.part}" if self.part else ""
        sides = f"analytic {self.analytic:.6e}, numeric {self.numeric:.6e} ± {self.noise:.0e}"
        return printable(f"<Coordinate {list(self.index)}{part}: {self.status}, {sides}>")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WrongMap(Record):
    """The places of the wrong entries of a tensor: a picture of at most 16 × 48 cells.

    Attributes:
        cells: lines of cells. A cell is the fraction of the judged entries of its block that are wrong, from 0 to 1;
            NaN where none was judged.
        down: the number and name of the lines, such as "10 rows"; "" where there is one line only.
        across: the number and name of the entries of a line, such as "8 columns".
        block: the number of lines, and of entries along a line, in one cell.
        analytic, numeric: the gradient on trial and the right one at that judged entry of each cell where they are
            furthest apart; NaN where none was judged.
    """

    cells: tuple[tuple[float, ...], ...]
    down: str
    across: str
    block: tuple[int, int]
    analytic: tuple[tuple[float, ...], ...] = ()
    numeric: tuple[tuple[float, ...], ...] = ()

    @property
    def differences(self) -> tuple[tuple[float, ...], ...]:
        """How far the gradient on trial is above the right one at each of these entries."""
        both = zip(self.analytic, self.numeric, strict=False)
        return tuple([tuple([a - n for a, n in zip(*lines, strict=False)]) for lines in both])

    def __repr__(self) -> str:
        judged = [share for line in self.cells for share in line if not math.isnan(share)]
        size = " × ".join(filter(None, (self.down, self.across)))
        return printable(f"<WrongMap {size}: {sum(share > 0 for share in judged)} of {len(judged)} cells are wrong>")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ParameterReport(Record):
    """The result of the check for one tensor of θ: a parameter, or a tensor that J is given.

    Attributes:
        name: the first name in `named_parameters()` order; of an input its place, such as `batch[0]`.
        aliases: the other names of a tied parameter.
        shape, numel: of the tensor.
        status: see `Status`.
        reason: one sentence behind a status that is not plain `match`, else ""; of a candidate that matches, how tight.
        relative_error: ‖numeric − analytic‖₂ / (‖numeric‖₂ + ‖analytic‖₂) over the checked coordinates; None where the
            row is flat, unused or frozen: a ratio of two zeros says nothing.
        verdict: the word for `relative_error`; None where there is none.
        max_abs_error: the largest |numeric − analytic|; NaN when not checked.
        noise: the largest error bar of a numeric derivative, in the unit of a derivative.
        eps: the step of the centered difference at most coordinates. A given step is absolute. A chosen step, such as
            4.5e-6, is a multiple of max(1, |θ|).
        checked: the number of compared coordinates; a complex entry has two.
        directions: the number of random directions that verified the numeric gradient; 0 where each coordinate was
            differenced.
        detectable: the size of an error, relative to the gradient, that the directions would have missed with odds of
            1e-6; NaN without directions, and for a gradient of zero. Of a candidate beside a reference: by how much a
            factor on the whole tensor must differ from 1 to be a mismatch.
        mismatched: the number of wrong coordinates; of a candidate all of a part that is wrong as a whole, though each
            entry may be within its error bar.
        worst: the worst coordinates, worst first.
        diagnosis: the kind of mistake, None when there is none.
        map: the places of the wrong entries, None when there are none.
        evaluations: the number of evaluations of J for this parameter.
        seconds: wall time spent on this parameter.
        role: what the tensor is to J: a parameter, an input, a captured tensor or an argument; of a candidate also an
            output, whose values are compared and not its gradient.
        rounding_ratio: of a candidate beside a reference: its root mean square error divided by that of the reference
            in the candidate's dtype, 1.3 for "1.3 times what bfloat16 loses"; NaN otherwise.
        relative_noise: ‖error bars‖₂ / (‖numeric‖₂ + ‖analytic‖₂): what of `relative_error` the error bars explain;
            NaN where nothing was compared, or all is zero.
        pairs: entries of both gradients to plot; None where none was compared.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    numel: int
    status: Status
    reason: str = ""
    relative_error: float | None = None
    verdict: Verdict | None = None
    max_abs_error: float = float("nan")
    noise: float = float("nan")
    eps: float = float("nan")
    checked: int = 0
    directions: int = 0
    detectable: float = float("nan")
    mismatched: int = 0
    worst: list[Coordinate] = field(default_factory=list)
    diagnosis: Diagnosis | None = None
    map: WrongMap | None = None
    evaluations: int = 0
    seconds: float = field(default=0.0, compare=False)
    role: Role = Role.PARAMETER
    rounding_ratio: float = float("nan")
    relative_noise: float = float("nan")
    pairs: Pairs | None = None

    def __repr__(self) -> str:
        ratio = [] if self.relative_error is None else [f"relative error {self.relative_error:.1e}"]
        wrong = [f"{self.mismatched:,} of {self.checked:,} wrong"] if self.mismatched else []
        found = ", ".join([str(self.status), *ratio, *wrong])
        return f"<ParameterReport {printable(self.name)} {shape_of(self.shape)}: {found}>"


def badness(row: ParameterReport) -> float:
    """The ratio that rows are sorted by: NaN is the worst."""
    ratio = row.relative_error
    return math.inf if ratio is None or math.isnan(ratio) else ratio
