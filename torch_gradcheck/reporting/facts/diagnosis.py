"""What kind of mistake a wrong gradient holds, with the evidence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch_gradcheck.reporting.facts.content import Record
from torch_gradcheck.reporting.facts.one_line import in_one_line
from torch_gradcheck.reporting.facts.trait import Trait, Word

OF_INPUT = "the gradient of "
"""So begins the message on a mistake that is made further downstream, in the gradient of a call's input."""

OF_PART = "the part of dθ for "
"""So begins the message on a mistake in what one call gives for the parameter itself."""

AGAIN = re.compile(r" \([^()]* in \d+ more calls?\)")
"""What such a message says of other calls that make the mistake, which differs from parameter to parameter."""


class DiagnosisKind(Word):
    """What the gradient on trial is, compared with the right one."""

    SCALED = "scaled", Trait.WHOLE, Trait.UNSURE
    SIGN_FLIPPED = "sign_flipped", Trait.WHOLE
    MISSING = "missing", Trait.WHOLE
    SPURIOUS = "spurious", Trait.UNSURE
    WEIGHT_DECAY = "weight_decay", Trait.WHOLE
    TRANSPOSED = "transposed", Trait.PLACED
    PERMUTED = "permuted", Trait.PLACED
    PARTIAL = "partial", Trait.PLACED, Trait.UNSURE, Trait.SEPARATE, Trait.WHERE
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
    BLOCK = "block", Trait.WHERE
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
    def is_told(self) -> bool:
        """True where the message says what is wrong, and not only where."""
        return self.is_known and Trait.WHERE not in self.traits

    @property
    def is_told_together(self) -> bool:
        """True where equal diagnoses of several parameters, with the same factor, are one mistake."""
        return Trait.SEPARATE not in self.traits


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Diagnosis(Record):
    """The kind of mistake in a wrong gradient, with the evidence in one sentence.

    Attributes:
        kind: see `DiagnosisKind`.
        message: the evidence, such as "dθ = 0.5 × the right gradient in every entry".
        factor: the factor of a scaled or clipped gradient, or the coefficient of a decay; None without one.
    """

    kind: DiagnosisKind
    message: str
    factor: float | None = None

    @property
    def made_in_a_call(self) -> str:
        """The mistake of a call that this one is, as parameters share it; "" where it is told without the call."""
        return AGAIN.sub("", self.message) if self.message.startswith((OF_INPUT, OF_PART)) else ""

    def __repr__(self) -> str:
        return f"<Diagnosis {self.kind}: {in_one_line(self.message)}>"
