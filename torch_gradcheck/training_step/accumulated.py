"""Recognises gradients that were accumulated over two steps and then clipped: one factor on a sum, in all of θ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import ERROR_BARS_ALLOWED, Evidence
from torch_gradcheck.diagnosis.kind.factors import factor_in_words
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

SEEN = 10.0
"""What was added is seen if its norm is 10 times that of the error bars."""


def accumulated_and_clipped(
    evidences: Mapping[int, Evidence], unclipped: Mapping[int, Floats], words: str, other: Mapping[int, Floats]
) -> Diagnosis | None:
    """ACCUMULATED, where `.grad` of every parameter is one factor below 1 times (its right gradient + another one).

    Args:
        evidences: `.grad` beside what it should be, by position in θ.
        unclipped: what it should be before it is clipped.
        words: a name for the other gradient.
        other: its values.
    """
    if any(not evidence.finite or at not in other for at, evidence in evidences.items()):
        return None
    sums = {at: np.nan_to_num(unclipped[at]) + other[at] for at in evidences}
    squares = sum(float(np.dot(values, values)) for values in sums.values())
    factor = sum(float(np.dot(evidences[at].analytic, values)) for at, values in sums.items()) / max(squares, 1e-300)
    scaled = {at: _with_bars(evidence, unclipped[at], factor) for at, evidence in evidences.items()}
    added = factor * float(np.linalg.norm(np.concatenate([other[at] for at in sums])))
    bars = ERROR_BARS_ALLOWED * float(np.linalg.norm(np.concatenate([each.error_bar for each in scaled.values()])))
    if not 0 < factor < 1 or added <= SEEN * bars:
        return None
    if not all(evidence.explains(factor * sums[at]) for at, evidence in scaled.items()):
        return None
    norm = float(np.linalg.norm(np.concatenate([evidence.analytic for evidence in evidences.values()])))
    message = (
        f"dθ = {factor_in_words(factor)} × (the right gradient plus {words}), and the norm of all of them together is "
        f"{norm:.4g}: zero_grad() is missing, and the sum was clipped"
    )
    return Diagnosis(DiagnosisKind.ACCUMULATED, message, factor)


def _with_bars(evidence: Evidence, unclipped: Floats, factor: float) -> Evidence:
    """The evidence with the error bars of the right gradient before it is clipped, times `factor`."""
    size, before = np.linalg.norm(np.nan_to_num(evidence.numeric)), np.linalg.norm(np.nan_to_num(unclipped))
    return replace(evidence, error_bar=evidence.error_bar * abs(factor) * (before / size if size else 1.0))
