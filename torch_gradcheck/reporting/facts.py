"""What a check found, as typed frozen rows: facts only, no formatting and no computation on tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum, StrEnum, auto
from typing import Self


class Trait(Enum):
    """A property of a status or a kind of mistake. Other rooms ask for it instead of listing members."""

    NAMED_AS_UNPROVEN = auto()
    """A note names the parameters of this status: the check looked at them and proved nothing."""
    PROVEN = auto()
    """The gradient is as right as one can be: differences of J agree with it."""
    DECIDED = auto()
    """Right or wrong was told, so that Ng's ratio says something."""
    NONZERO = auto()
    """The gradient is not zero, so an error has a size relative to it."""

    WHOLE = auto()
    """A mistake of the whole gradient that rounding does not imitate."""
    PLACED = auto()
    """The message names places of one tensor, so each parameter is told by itself."""
    UNSURE = auto()
    """A tensor of few entries may look like this by chance."""
    SEPARATE = auto()
    """Equal in two parameters, it is no sign of one mistake in both."""


class _Word(StrEnum):
    """A string with traits; the traits take no part in comparison, `str()`, pickling or JSON."""

    _value_: str
    traits: frozenset[Trait]

    def __new__(cls, word: str, *traits: Trait) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.traits = frozenset(traits)
        return member


class Status(_Word):
    """What could be said of one parameter's gradient."""

    MATCH = "match", Trait.NONZERO, Trait.PROVEN, Trait.DECIDED
    """Agrees within the tolerance."""
    MISMATCH = "mismatch", Trait.NONZERO, Trait.DECIDED
    """Wrong by more than the tolerance and the error bar, confirmed at other step sizes."""
    KINK = "kink", Trait.PROVEN, Trait.DECIDED
    """Disagrees only where J is not differentiable, and lies between the one-sided slopes."""
    FLAT = "flat", Trait.NAMED_AS_UNPROVEN
    """Both sides are zero to within the noise: nothing was proven."""
    UNUSED = "unused"
    """The loss does not reach the parameter, and J does not depend on it."""
    UNDECIDED = "undecided", Trait.NONZERO, Trait.NAMED_AS_UNPROVEN
    """The noise of J is too large to tell."""
    FROZEN = "frozen"
    """`requires_grad` is false: not checked."""

    @property
    def is_named_as_unproven(self) -> bool:
        """True where the note on unproven parameters names those of this status."""
        return Trait.NAMED_AS_UNPROVEN in self.traits

    @property
    def is_proven(self) -> bool:
        """True where differences of J agree with the gradient."""
        return Trait.PROVEN in self.traits

    @property
    def is_decided(self) -> bool:
        """True where the gradient was found right or wrong."""
        return Trait.DECIDED in self.traits

    @property
    def has_ratio(self) -> bool:
        """True where Ng's ratio says something: it compares two gradients, and not two zeros."""
        return self.is_decided or self is Status.UNDECIDED

    @property
    def is_nonzero(self) -> bool:
        """True where the gradient is not zero, so that an error has a size relative to it."""
        return Trait.NONZERO in self.traits


class Verdict(StrEnum):
    """The word for a relative error, on the scale of Andrew Ng's lecture on gradient checking."""

    GREAT = "great"
    GOOD = "good"
    DOUBTFUL = "doubtful"
    WORRY = "worry"

    @classmethod
    def of(cls, relative_error: float) -> Verdict:
        """The word for ‖approx − grad‖₂ / (‖approx‖₂ + ‖grad‖₂); NaN is a worry."""
        if relative_error <= 1e-7:
            return cls.GREAT
        if relative_error <= 1e-5:
            return cls.GOOD
        if relative_error <= 1e-3:
            return cls.DOUBTFUL
        return cls.WORRY


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


class DiagnosisKind(_Word):
    """What the gradient on trial is, compared with the right one."""

    SCALED = "scaled", Trait.WHOLE, Trait.UNSURE
    SIGN_FLIPPED = "sign_flipped", Trait.WHOLE
    MISSING = "missing", Trait.WHOLE
    SPURIOUS = "spurious", Trait.UNSURE
    WEIGHT_DECAY = "weight_decay", Trait.WHOLE
    TRANSPOSED = "transposed", Trait.PLACED
    PERMUTED = "permuted", Trait.PLACED
    PARTIAL = "partial", Trait.PLACED, Trait.UNSURE, Trait.SEPARATE
    CLIPPED = "clipped"
    LOW_PRECISION = "low_precision"
    ACCUMULATED = "accumulated", Trait.WHOLE
    STALE = "stale", Trait.WHOLE
    WEIGHTED = "weighted", Trait.WHOLE
    UNREDUCED = "unreduced", Trait.WHOLE
    MISSING_TERM = "missing_term"
    PROJECTION = "projection"
    SLICEWISE = "slicewise", Trait.SEPARATE
    UNMASKED = "unmasked"
    SLOPE = "slope"
    BLOCK = "block"
    PROPAGATED = "propagated"
    WRONG_SUM = "wrong_sum", Trait.SEPARATE
    DETACHED = "detached"
    UNKNOWN = "unknown", Trait.UNSURE, Trait.SEPARATE

    @property
    def is_of_the_whole_gradient(self) -> bool:
        """True for a mistake of the whole gradient that rounding does not imitate."""
        return Trait.WHOLE in self.traits

    @property
    def is_about_places(self) -> bool:
        """True where the message names places of one tensor, so that each parameter is told by itself."""
        return Trait.PLACED in self.traits

    @property
    def needs_many_entries(self) -> bool:
        """True where a tensor of few entries may look like this by chance."""
        return Trait.UNSURE in self.traits

    @property
    def is_known(self) -> bool:
        """True where the message says more than that the gradient is wrong."""
        return self is not DiagnosisKind.UNKNOWN

    @property
    def is_told_together(self) -> bool:
        """True where equal diagnoses of several parameters, with the same factor, are one mistake."""
        return Trait.SEPARATE not in self.traits


@dataclass(frozen=True, slots=True)
class Coordinate:
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


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The kind of mistake in a wrong gradient, with the evidence in one sentence.

    Attributes:
        kind: see `DiagnosisKind`.
        message: the evidence, such as "dθ = 0.5 × the right gradient in every entry".
        factor: the factor of a scaled or clipped gradient, or the coefficient of a decay; None without one.
    """

    kind: DiagnosisKind
    message: str
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class WrongMap:
    """The places of the wrong entries of a tensor: a picture of at most 16 × 48 cells.

    Attributes:
        cells: lines of cells. A cell is the fraction of the judged entries of its block that are wrong, from 0 to 1;
            NaN where none was judged.
        down: the number and name of the lines, such as "10 rows"; "" where there is one line only.
        across: the number and name of the entries of a line, such as "8 columns".
        block: the number of lines, and of entries along a line, in one cell.
    """

    cells: tuple[tuple[float, ...], ...]
    down: str
    across: str
    block: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ParameterReport:
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
    seconds: float = 0.0
    role: Role = Role.PARAMETER
    rounding_ratio: float = float("nan")


class ContractStatus(StrEnum):
    """What became of an entry of a function's contract."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True)
class ContractEntry:
    """What else holds of a function that others call inside their models, besides its gradient.

    Attributes:
        name: of the entry, such as `grad_output_kept`.
        status: see `ContractStatus`.
        message: of a failure what was done, found and should have been; why an entry is not applicable; of one that
            passed what was tried, or "".
    """

    name: str
    status: ContractStatus
    message: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything a check found; iterates over its `ParameterReport`s in the order of `named_parameters()`.

    Attributes:
        parameters: one row a distinct parameter, then one a tensor on trial that J is given.
        relative_error: Ng's ratio over the decided tensors of θ; None where nothing was decided.
        loss: J(θ).
        method: `"exact"` or `"projected"`.
        evaluations: the number of evaluations of J, forward passes for the analytic side included.
        seconds: wall time of the whole check.
        tolerance: the largest relative error that passes.
        dtype: the precision of the check, such as `"float64"`.
        mode: `"eval"`, `"train"` or `"keep"`.
        seed: the seed of the check's own random choices.
        noise: the measured noise of J, one standard deviation, in the unit of J.
        culprit: the innermost module whose own backward is wrong ("" for the model's own forward), `"loss_fn"` or, of
            a function, the name of the Function or operator at fault or its own; the
            name of a parameter whose hook is at fault, or None; `notes` says more, and why it is None.
        notes: one sentence each on what the figures do not say.
        in_grad: the report on the `.grad` that a training step left, where `.grad` was checked too. The row of a
            parameter is then the worse of the two.
        backward_spread: how far two runs of the backward lie apart where they differ by more than rounding: the largest
            difference relative to the largest entry of the gradient; 0 where they do not. Such a check does not pass.
        order: 1, or 2 where J is the slope ⟨v, ∇J⟩ of the loss and its gradient is that of a double backward.
        contract: of `check_function`, one entry each for what else was tried; else empty.
        reference: the report on the reference's own gradients, in float64 against centered differences, where a
            candidate was compared with one. Nothing passes beside a reference that is wrong itself.
        processes: how many processes shared the evaluations; 1 without a group. `seconds` are those of the first one.
        place: where the culprit's mistake is, such as "in the backward of Swish at net.py:13"; "" where there is none
            or it has no line.
    """

    parameters: tuple[ParameterReport, ...]
    relative_error: float | None
    loss: float
    method: str
    evaluations: int
    seconds: float
    tolerance: float
    dtype: str
    mode: str
    seed: int
    noise: float
    culprit: str | None = None
    notes: list[str] = field(default_factory=list)
    in_grad: Facts | None = None
    backward_spread: float = 0.0
    contract: list[ContractEntry] = field(default_factory=list)
    order: int = 1
    reference: Facts | None = None
    processes: int = 1
    place: str = ""

    @property
    def passed(self) -> bool:
        """No parameter is a mismatch, at least one is a match or a kink, and the backward is one function.

        Of a function, no entry of the contract has failed either. A check that proved nothing does not pass, nor does
        one that proved nothing but the outputs of a candidate.
        """
        right = not (self.mismatches or self.backward_spread or self.broken or self.has_wrong_reference)
        return right and any(row.status.is_proven for row in self.parameters if row.role is not Role.OUTPUT)

    @property
    def proven(self) -> bool:
        """`passed`, and every checked parameter is a match or a kink: none is flat, unused or undecided."""
        return self.passed and all(row.status.is_proven for row in self.parameters if row.status is not Status.FROZEN)

    @property
    def verdict(self) -> Verdict | None:
        """The word for `relative_error`; None where nothing was decided."""
        return None if self.relative_error is None else Verdict.of(self.relative_error)

    @property
    def mismatches(self) -> list[ParameterReport]:
        """The rows that are wrong, worst first (a ratio of NaN is the worst)."""
        wrong = [row for row in self.parameters if row.status is Status.MISMATCH]
        return sorted(wrong, key=badness, reverse=True)

    @property
    def broken(self) -> list[ContractEntry]:
        """The entries of the contract that have failed."""
        return [entry for entry in self.contract if entry.status is ContractStatus.FAILED]

    @property
    def has_wrong_reference(self) -> bool:
        """Whether the reference's own gradient is wrong."""
        return self.reference is not None and bool(self.reference.mismatches)

    def __bool__(self) -> bool:
        return self.passed

    def __iter__(self) -> Iterator[ParameterReport]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __contains__(self, name: object) -> bool:
        return any(name == row.name or name in row.aliases for row in self.parameters)

    def __getitem__(self, name: str) -> ParameterReport:
        for row in self.parameters:
            if name == row.name or name in row.aliases:
                return row
        known = [row.name for row in self.parameters]
        close = get_close_matches(str(name), known, n=3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise KeyError(f"no row {name!r} in this report{hint}")


def badness(row: ParameterReport) -> float:
    """The ratio that rows are sorted by: NaN is the worst."""
    ratio = row.relative_error
    return math.inf if ratio is None or math.isnan(ratio) else ratio
