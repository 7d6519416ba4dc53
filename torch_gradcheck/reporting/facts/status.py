"""What could be said of one gradient: the status, and the lecture's word for its relative error."""

from __future__ import annotations

from enum import StrEnum

from torch_gradcheck.reporting.facts.trait import Trait, Word


class Status(Word):
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
    def is_checked(self) -> bool:
        """False where the gradient was not looked at."""
        return self is not Status.FROZEN

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
