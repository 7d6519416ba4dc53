"""The kind CLIPPED: the right gradient limited in value, or scaled down to a norm that looks like a limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, factor_in_words, meaning_of
from torch_gradcheck.diagnosis.kind.finding import Finding, conclusive
from torch_gradcheck.diagnosis.kind.scaling import scaled
from torch_gradcheck.reporting.facts import DiagnosisKind

CLIP_EPS = 1e-6
"""The number that torch.nn.utils.clip_grad_norm_ adds to the norm it divides by."""

ROUND_BEFORE = 1e-6
"""A norm that is a round number to within 1e-6 before clipping, too, makes a round norm after it a coincidence."""

FEW_TELL = 64
"""So many entries tell whether all are round numbers."""


def clipped(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> Finding | None:
    """CLIPPED: limited in value, or scaled down to a round norm."""
    return (_clipped_in_value(evidence) or _clipped_in_norm(evidence, meanings)) if evidence.finite else None


def _clipped_in_value(evidence: Evidence) -> Finding | None:
    """CLIPPED in value: all wrong entries stand at a limit that the right ones exceed; all others are within it."""
    low, high = float(np.min(evidence.analytic)), float(np.max(evidence.analytic))
    if low == high or not evidence.explains(np.clip(evidence.numeric, low, high)):
        return None
    stuck = evidence.analytic[evidence.wrong]
    limits = [limit for limit in (low, high) if np.any(_at(stuck, limit))]
    at_limit = np.any([_at(stuck, limit) for limit in limits], axis=0) if limits else np.zeros(1)
    # Entries set to 0 look limited at 0 if the right ones happen to have one sign, in 1 of 32 cases with six entries.
    # Any other number that two entries share is a limit.
    few = len(stuck) < (6 if 0.0 in limits else 2) or (len(stuck) < 4 and np.sum(evidence.right) < 2)
    if few or not np.all(at_limit):
        return None
    return conclusive(DiagnosisKind.CLIPPED, limited_in_value(stuck, limits))


def limited_in_value(stuck: Floats, limits: Sequence[float]) -> str:
    """The sentence on entries `stuck` at those of the limits that they reach."""
    reached = [limit for limit in limits if np.any(_at(stuck, limit))]
    between = " and ".join(f"{limit:.4g}" for limit in reached or limits)
    entries = (
        "1 entry that should be beyond stands"
        if len(stuck) == 1
        else f"{len(stuck)} entries that should be beyond stand"
    )
    return f"dθ is the right gradient limited in value: {entries} at {between}"


def _at(values: Floats, limit: float) -> Flags:
    return np.asarray(np.isclose(values, limit, rtol=1e-9, atol=0))


def _clipped_in_norm(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> Finding | None:
    """CLIPPED in norm: scaled down to a norm that is a round number, as no gradient's norm is by itself.

    Entries that are round numbers themselves, such as 2, 2, 2, 2, have a round norm by coincidence, and so has a factor
    that means something else.
    """
    found = scaled(evidence, ())
    if found is None or not evidence.judged.all() or meaning_of(found.diagnosis.factor or 0.0, meanings):
        return None
    if all(_is_round(float(entry), evidence.epsilon) for entry in evidence.analytic[:FEW_TELL]):
        return None
    return clipped_to_round_norm(found.diagnosis.factor, float(np.linalg.norm(evidence.analytic)), "", evidence.epsilon)


def clipped_to_round_norm(factor: float | None, norm: float, over: str, epsilon: float) -> Finding | None:
    """CLIPPED, if gradients scaled by `factor` have a norm that looks like a limit; else None.

    Args:
        factor: on the right gradient; only one between 0 and 1 can be clipping.
        norm: of the gradients on trial.
        over: words after "norm" in the message, such as " over all of θ".
        epsilon: machine epsilon of the precision the gradients are kept in.
    """
    if (
        factor is None
        or not 0 < factor < 1
        or not (before := norm / factor)
        or _is_round(before, epsilon, ROUND_BEFORE)
    ):
        return None
    limit = next((limit for limit in (norm, norm * (before + CLIP_EPS) / before) if _is_round(limit, epsilon)), None)
    if limit is None:
        return None
    return conclusive(
        DiagnosisKind.CLIPPED,
        f"dθ = {factor_in_words(factor)} × the right gradient, whose norm{over} of {before:.4g} was limited to "
        f"{limit:.4g}",
        factor,
    )


def _is_round(number: float, epsilon: float, within: float = 1e-10) -> bool:
    """Whether `number` has at most two significant digits, as 1.0, 0.25 or 12, to within rounding."""
    return abs(number - float(f"{number:.1e}")) <= max(within, 64 * epsilon) * abs(number)
