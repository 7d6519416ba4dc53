"""The kinds SCALED, SIGN_FLIPPED and WEIGHT_DECAY: the right gradient times a factor, or plus a multiple of θ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, factor_in_words, meaning_of
from torch_gradcheck.diagnosis.kind.finding import Finding, conclusive
from torch_gradcheck.precision.lower_precisions import rounding_of_all
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

ROUNDINGS = 4.0
"""Rounding to a lower precision may move an entry by at most 4 of its machine epsilons times the largest entry."""

ENOUGH_ROUNDED = 4
"""So many entries, at least, make a factor between rounded numbers more than a coincidence."""

CANCEL = 1e-6
"""Two entries cancel where their sum is a millionth of their sizes."""

CLEARLY_NOT_ONE = 3.0
"""A factor is a mistake only if it is more than this many residuals of its fit away from 1."""


def scaled(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> Finding | None:
    """SCALED: one factor on every entry; SIGN_FLIPPED for the factor −1."""
    n, a = evidence.numeric[evidence.resolved], evidence.analytic[evidence.resolved]
    if not len(n) or not evidence.finite:
        return None
    w = evidence.weights[evidence.resolved]
    factor = float(np.dot(w * a, w * n) / np.dot(w * n, w * n))
    residual = evidence.residual(factor * evidence.numeric, factor)
    if not np.isfinite(residual):
        return _scaled_and_rounded(evidence, meanings)
    if factor == 0 or abs(factor - 1) <= CLEARLY_NOT_ONE * residual:
        return None
    return _by_factor(factor, residual, _everywhere(n, residual), meanings, proven=_prove(n))


def _prove(resolved: Floats) -> bool:
    """Whether these entries show a factor. Two that cancel do not: those of two logits always do."""
    cancel = len(resolved) == 2 and abs(np.sum(resolved)) <= CANCEL * np.sum(np.abs(resolved))
    return len(resolved) > 1 and not cancel


def _by_factor(
    factor: float, uncertainty: float, where: str, meanings: Sequence[FactorMeaning], proven: bool = True
) -> Finding:
    meaning = meaning_of(factor, meanings, uncertainty)
    if abs(factor + 1) <= max(1e-5, uncertainty):
        return conclusive(DiagnosisKind.SIGN_FLIPPED, f"dθ = −1 × the right gradient {where}: a sign is flipped", -1.0)
    message = f"dθ = {factor_in_words(factor)} × the right gradient {where}"
    found = Diagnosis(DiagnosisKind.SCALED, message + (f": {meaning}" if meaning else ""), factor)
    return Finding(found, conclusive=proven or bool(meaning))


def _scaled_and_rounded(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> Finding | None:
    """SCALED, where all entries on trial are numbers of a lower precision, and its rounding explains what is left.

    The rounding of the largest entries hides what is small, so the factor is that of the large ones.
    """
    rounding = rounding_of_all([evidence.analytic[evidence.judged]])
    n, a = evidence.numeric[evidence.judged], evidence.analytic[evidence.judged]
    if rounding is None or np.sum(evidence.resolved) < ENOUGH_ROUNDED:
        return None
    factor = float(np.dot(a, n) / np.dot(n, n))
    left = np.abs(a - factor * n) - abs(factor) * evidence.error_bar[evidence.judged]
    scatter = float(np.linalg.norm(a - factor * n) / np.linalg.norm(a))
    too_far = np.max(left) > ROUNDINGS * rounding.epsilon * np.max(np.abs(a)) or scatter > rounding.epsilon
    if too_far or abs(factor - 1) <= max(CLEARLY_NOT_ONE * scatter, 2 * rounding.epsilon):
        return None
    where = f"in every entry, but for the rounding of {rounding.name} numbers (residual {scatter:.0e})"
    return _by_factor(factor, rounding.epsilon / 2, where, meanings)


def weight_decay(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """WEIGHT_DECAY: the gradient is off by a multiple of θ."""
    off, theta = evidence.off[evidence.judged], evidence.theta[evidence.judged]
    if not np.any(theta) or not evidence.finite:
        return None
    w = evidence.weights[evidence.judged]
    factor = float(np.dot(w * off, w * theta) / np.dot(w * theta, w * theta))
    predicted = evidence.numeric + factor * evidence.theta
    residual = evidence.residual(predicted)
    informative = np.abs(factor * theta) > 10 * (evidence.error_bar[evidence.judged] + evidence.tolerance * np.abs(off))
    if not np.isfinite(residual) or factor == 0:
        return None
    what = (
        "the loss has weight decay that the gradient lacks"
        if factor < 0
        else "the gradient has weight decay that the loss lacks"
    )
    message = f"dθ is off by {factor_in_words(factor)} · θ in every entry (residual {residual:.0e}): {what}"
    varied = len(np.unique(np.round(np.abs(theta[informative]), 12))) > 1
    return Finding(Diagnosis(DiagnosisKind.WEIGHT_DECAY, message, factor), conclusive=varied)


def _everywhere(resolved: Floats, residual: float) -> str:
    return f"in every entry (residual {residual:.0e})" if len(resolved) > 1 else "in its one entry that is not zero"
