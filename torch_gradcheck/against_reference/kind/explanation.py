"""Whether a kind of mistake explains a wrong tensor: with the mistake taken away, it passes the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.judge import Judged, judged
from torch_gradcheck.against_reference.judging.wholes import ITSELF
from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import root_mean_square

EXPLAINED = 0.5
"""A mistake is explained where at most half of the root mean square error is left: three quarters of its square."""

ENOUGH = 6
"""A multiple of a tensor is found in at least 6 entries: fewer fit by chance."""


ABOUT_AS_GOOD = 2.0
"""The rest of a tensor is right if its root mean square error is at most twice that of the reference in its dtype."""

CLEARLY = 1.5
"""A slice is off as a whole by 1.5 times of what any slice is in any run of the reference."""


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
        """Candidate minus reference; 0 where the reference is not finite in the candidate's dtype."""
        return self._error_of(self.given)

    def _error_of(self, run: Floats) -> Floats:
        return np.asarray(np.where(self.wrong.bars.overflowed, 0.0, run - self.compared.right))

    def passes(self, candidate: Sequence[Floats]) -> bool:
        """Whether the candidate would be right with these numbers."""
        return not judged(replace(self.compared, candidate=candidate), self.tolerance).is_wrong

    def passes_without(self, mistake: Floats) -> bool:
        """Whether it would be right without this term, which is most of its error."""
        left = root_mean_square(self.off - mistake)
        if left > EXPLAINED * root_mean_square(self.off) or not self._is_rounding(left):
            return False
        return self.passes([run - mistake for run in self.compared.candidate])

    def _is_rounding(self, left: float, factor: float = 1.0) -> bool:
        """Whether this root mean square error is about what the reference loses, on numbers as large."""
        size, right = root_mean_square(self.given), root_mean_square(self.compared.right)
        larger = max(1.0, size / right if right else 1.0, abs(factor))
        loses = max([root_mean_square(self._error_of(run)) for run in self.compared.rounded], default=0.0)
        return not loses or left <= ABOUT_AS_GOOD * larger * loses

    def is_that_of(self, other: Compared) -> bool:
        """Whether it is the right tensor of another row."""
        if root_mean_square(self.given - other.right) > EXPLAINED * root_mean_square(self.off):
            return False
        return not judged(replace(other, candidate=self.compared.candidate), self.tolerance).is_wrong

    def is_in_order(self, order: Indices) -> bool:
        """Whether it is the right tensor with its entries in this order."""
        each = self.compared
        return self.is_that_of(replace(each, right=each.right[order], rounded=[run[order] for run in each.rounded]))

    def is_right_outside(self, where: Flags) -> bool:
        """Whether it would be right, were the entries of `where` what the reference gives in the candidate's dtype.

        The others must be about as good as these, not only within their error bars.
        """
        plain = self.compared.rounded[0]
        own, loses = root_mean_square(self.off[~where]), root_mean_square(self._error_of(plain)[~where])
        if own > ABOUT_AS_GOOD * loses and loses:
            return False
        return self.passes([np.where(where, plain, run) for run in self.compared.candidate])

    def hit(self, shape: Sequence[int], axis: int) -> Flags:
        """Which slices along an axis are off by clearly more than those of any run of the reference, as a whole."""
        others = tuple(other for other in range(len(shape)) if other != axis)
        if np.prod([shape[other] for other in others]) < ENOUGH:
            return np.zeros(shape[axis], dtype=bool)
        bars = np.where(self.wrong.bars.entry > 0, self.wrong.bars.entry, np.nan)

        def sizes(run: Floats) -> Floats:
            off = np.square(self._error_of(run) / bars).reshape(shape)
            return np.asarray(np.sqrt(np.mean(np.nan_to_num(off, nan=0.0), axis=others)))

        noise = max(float(np.max(sizes(run), initial=0.0)) for run in self.compared.rounded)
        return np.asarray(sizes(self.given) > CLEARLY * noise)

    def factor(self) -> Fit | None:
        """The factor on the whole tensor, as its difference from 1; None where it explains nothing."""
        right = self.compared.right
        fit = self._fit(right)
        factor = 1 + fit.coefficient
        if not factor or np.count_nonzero(right) < 1:
            return None
        left = root_mean_square(self.off - fit.coefficient * right)
        explained = (fit.left <= EXPLAINED or self._is_off_along_itself_only) and self._is_rounding(left, factor)
        fits = explained and self.passes([run / factor for run in self.compared.candidate])
        return replace(fit, uncertainty=abs(factor) * fit.uncertainty) if fits else None

    @property
    def _is_off_along_itself_only(self) -> bool:
        """Whether a factor is all that is wrong: no entry is beyond its bar, and no error is left beyond rounding."""
        return self.wrong.part is not None and self.wrong.worst.along == ITSELF and self.wrong.rms <= 1

    def multiple_of(self, term: Floats) -> Fit | None:
        """The multiple of another tensor that was added to it; None where it explains nothing."""
        if np.count_nonzero(term) < ENOUGH or not np.all(np.isfinite(term)):
            return None
        fit = self._fit(term)
        return fit if fit.coefficient and self.passes_without(fit.coefficient * term) else None

    def _fit(self, term: Floats) -> Fit:
        coefficient = slope_of(self.off, term)
        moved = [abs(slope_of(self._error_of(run), term)) for run in self.compared.rounded]
        before = root_mean_square(self.off)
        left = root_mean_square(self.off - coefficient * term) / before if before else 0.0
        return Fit(coefficient, max(moved, default=0.0), left)


def slope_of(error: Floats, term: Floats) -> float:
    """⟨error, term⟩ / ⟨term, term⟩: how many times a term is in an error; 0 where it is 0."""
    size = float(np.dot(term, term))
    return float(np.dot(error, term)) / size if size else 0.0
