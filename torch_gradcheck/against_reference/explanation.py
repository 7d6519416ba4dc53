"""Whether a kind of mistake explains a wrong tensor: with the mistake taken away, it passes the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from torch_gradcheck.against_reference.bars import root_mean_square, slope_of
from torch_gradcheck.against_reference.compared import Compared
from torch_gradcheck.against_reference.judge import Judged, judged
from torch_gradcheck.arrays import Flags, Floats

EXPLAINED = 0.5
"""A mistake is explained where at most half of the root mean square error is left: three quarters of its square."""

ENOUGH = 6
"""A multiple of a tensor is found in at least 6 entries: fewer fit by chance."""


@dataclass(frozen=True)
class Fit:
    """A wrong tensor as the right one and a multiple of another.

    Attributes:
        coefficient: c of off ≈ c · term.
        uncertainty: how far rounding moves c: the furthest of the rounded runs of the reference.
        left: the root mean square error that is left, relative to that before.
    """

    coefficient: float
    uncertainty: float
    left: float


class Explanation:
    """One wrong tensor, and what would explain it.

    Args:
        wrong: the tensor as it was judged; every entry is a number.
        tolerance: that it was judged by.
    """

    def __init__(self, wrong: Judged, tolerance: float) -> None:
        self.wrong, self.tolerance = wrong, tolerance

    @property
    def compared(self) -> Compared:
        """The numbers of both sides."""
        return self.wrong.compared

    @property
    def given(self) -> Floats:
        """What the candidate computed."""
        return self.compared.candidate[0]

    @property
    def off(self) -> Floats:
        """Candidate minus reference."""
        return np.asarray(self.given - self.compared.right)

    def passes(self, candidate: Sequence[Floats]) -> bool:
        """Whether the candidate would be right with these numbers."""
        return not judged(replace(self.compared, candidate=candidate), self.tolerance).is_wrong

    def passes_without(self, mistake: Floats) -> bool:
        """Whether it would be right without this term, which is most of its error."""
        left = root_mean_square(self.off - mistake)
        return left <= EXPLAINED * root_mean_square(self.off) and self.passes(
            [run - mistake for run in self.compared.candidate]
        )

    def is_that_of(self, other: Compared) -> bool:
        """Whether it is the right tensor of another row."""
        if root_mean_square(self.given - other.right) > EXPLAINED * root_mean_square(self.off):
            return False
        return not judged(replace(other, candidate=self.compared.candidate), self.tolerance).is_wrong

    def is_right_outside(self, where: Flags) -> bool:
        """Whether it would be right, were the entries of `where` what the reference gives in the candidate's dtype."""
        plain = self.compared.rounded[0]
        return self.passes([np.where(where, plain, run) for run in self.compared.candidate])

    def factor(self) -> Fit | None:
        """The factor on the whole tensor, as its difference from 1; None where it explains nothing."""
        right = self.compared.right
        fit = self._fit(right)
        factor = 1 + fit.coefficient
        if not factor or np.count_nonzero(right) < 1:
            return None
        explained = fit.left <= EXPLAINED or self._is_off_along_itself_only
        fits = explained and self.passes([run / factor for run in self.compared.candidate])
        return replace(fit, uncertainty=abs(factor) * fit.uncertainty) if fits else None

    @property
    def _is_off_along_itself_only(self) -> bool:
        """Whether a factor is all that is wrong: no entry is beyond its bar, and no error is left beyond rounding."""
        bars = self.wrong.bars
        return not np.any(np.abs(self.off) > bars.entry) and root_mean_square(self.off) <= bars.rms

    def multiple_of(self, term: Floats) -> Fit | None:
        """The multiple of another tensor that was added to it; None where it explains nothing."""
        if np.count_nonzero(term) < ENOUGH or not np.all(np.isfinite(term)):
            return None
        fit = self._fit(term)
        return fit if fit.coefficient and self.passes_without(fit.coefficient * term) else None

    def _fit(self, term: Floats) -> Fit:
        coefficient = slope_of(self.off, term)
        moved = [abs(slope_of(run - self.compared.right, term)) for run in self.compared.rounded]
        before = root_mean_square(self.off)
        left = root_mean_square(self.off - coefficient * term) / before if before else 0.0
        return Fit(coefficient, max(moved, default=0.0), left)
