"""The kinds MISSING_TERM, PROJECTION and SLICEWISE: off by a term, or by another multiple of one in each slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, factor_in_words
from torch_gradcheck.diagnosis.kind.finding import Finding, conclusive
from torch_gradcheck.diagnosis.kind.slicewise import along_in_words, are_independent, axes_of_slices, fitted_by_slices
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

ENOUGH = 6
"""A term is found in at least 6 entries: a constant or signs fit fewer by chance."""

LARGEST = 1_000_000
"""Slices are fitted in tensors of at most a million entries."""


def missing_term(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """MISSING_TERM: off by a multiple of the signs of θ, as of an L1 penalty, or by the same number everywhere."""
    if not evidence.finite or np.sum(evidence.judged) < ENOUGH or not evidence.stands_out:
        return None
    for name, term in (("sign(θ)", np.sign(evidence.theta)), ("1", np.ones(len(evidence.theta)))):
        known = term[evidence.judged]
        factor = float(np.dot(evidence.off[evidence.judged], known) / max(np.dot(known, known), 1.0))
        if not factor or np.ptp(np.abs(evidence.theta[evidence.judged])) == 0:  # then it may as well be weight decay
            continue
        if np.isfinite(residual := evidence.residual(evidence.numeric + factor * term)):
            words = f"dθ is off by {factor_in_words(factor)} · {name} in every entry (residual {residual:.0e}): a term "
            return conclusive(DiagnosisKind.MISSING_TERM, f"{words}too few or too many", factor)
    return None


def projection(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """PROJECTION: off by a multiple of 1 or of θ in every slice, another one in each."""
    if not _is_whole(evidence):
        return None
    off = evidence.grid(evidence.off)
    for axes in axes_of_slices(off.ndim):
        for name, basis in (("θ", evidence.grid(evidence.theta)), ("1 (its mean)", np.ones(off.shape))):
            fit = fitted_by_slices(off, [basis], axes)
            if fit is not None and evidence.explains(evidence.numeric + fit.ravel()):
                message = (
                    f"dθ is off by a multiple of {name} {along_in_words(axes)}, another one in each slice: the "
                    f"backward lacks the term with {name} there, or has it wrong"
                )
                return conclusive(DiagnosisKind.PROJECTION, message)
    return None


def slicewise(evidence: Evidence) -> Diagnosis | None:
    """SLICEWISE: the right gradient times another factor in every slice; None where it is not, or a product of vectors.

    Whatever is wrong upstream, the gradient of a weight stays a product of vectors where the batch has one row.
    """
    if not _is_whole(evidence):
        return None
    on_trial, right = evidence.grid(evidence.analytic), evidence.grid(evidence.numeric)
    for axes in axes_of_slices(on_trial.ndim):
        fit = fitted_by_slices(on_trial, [right], axes)
        if fit is None or not are_independent(right, axes):
            continue
        factors = factors_by_slices(fit, right)
        if np.isfinite(evidence.residual(fit.ravel(), float(np.max(np.abs(factors))))):
            message = f"dθ is the right gradient {factors_in_words(factors, along_in_words(axes))}"
            return Diagnosis(DiagnosisKind.SLICEWISE, message)
    return None


def factors_by_slices(fitted: Floats, right: Floats) -> Floats:
    """The factors of a fit by multiples of the right gradient, one an entry that is not zero."""
    return np.asarray(fitted[right != 0] / right[right != 0])


def factors_in_words(factors: Floats, slices: str) -> str:
    """The words "times another factor in each slice along axis 1, from 0.5 to 2"."""
    low, high = factor_in_words(float(np.min(factors))), factor_in_words(float(np.max(factors)))
    return f"times another factor in each slice {slices}, from {low} to {high}"


def _is_whole(evidence: Evidence) -> bool:
    """Whether every entry of a tensor of several axes is judged, and the error is more than noise."""
    several = len(evidence.shape) > 1 and evidence.analytic.size <= LARGEST and not evidence.has_complex_axis
    known = bool(np.all(evidence.judged) and np.all(np.isfinite(evidence.numeric)))
    return several and evidence.finite and known and evidence.stands_out
