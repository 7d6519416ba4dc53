"""Names the mistake of one wrong gradient, or of several that one mistake may have spoiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import CLOSE, FactorMeaning
from torch_gradcheck.diagnosis.kind.kinds import KINDS, Finding, clipped, clipped_to_round_norm, off_by, unknown
from torch_gradcheck.precision.lower_precisions import Rounding
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

Key = TypeVar("Key")

PASSED_ON = 8.0
"""How many machine epsilons of its largest entry a gradient may be off by that was rounded further downstream."""


def diagnose(evidence: Evidence, meanings: Sequence[FactorMeaning] = ()) -> Diagnosis | None:
    """The kind of mistake of one gradient, None where nothing is wrong.

    Args:
        evidence: the gradient on trial beside the right one.
        meanings: factors that would mean something here (the batch size, a loss scale, how often gradients were
            accumulated); they go before those that always mean the same.
    """
    return diagnose_all({"": evidence}, meanings).get("")


def diagnose_all(
    evidences: Mapping[Key, Evidence], meanings: Sequence[FactorMeaning] = (), rounding: Rounding | None = None
) -> dict[Key, Diagnosis]:
    """The kind of mistake of every gradient with a wrong entry.

    What one gradient is too small to prove (a factor in a single entry) counts where another proves the same.

    Args:
        evidences: all gradients that were tried, the right ones too: a norm clipped over all of them shows in none
            alone.
        meanings: as for `diagnose`.
        rounding: a precision that a gradient on the way to these was seen to be rounded to.
    """
    wrong = {key: evidence for key, evidence in evidences.items() if evidence.wrong.any()}
    findings = {key: _finding(evidence, meanings) for key, evidence in wrong.items()}
    together = _clipped_together(evidences, findings)
    conclusive = [found.diagnosis for found in findings.values() if found is not None and found.conclusive]
    return {
        key: together
        or (
            found.diagnosis if found and (found.conclusive or _seen(found, conclusive)) else _last(wrong[key], rounding)
        )
        for key, found in findings.items()
    }


def _finding(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> Finding | None:
    """The first kind that is proven; else the first that fits."""
    fitting: Finding | None = None
    with np.errstate(all="ignore"):
        for kind in KINDS:
            found = kind(evidence, meanings)
            if found is not None and found.diagnosis.kind is DiagnosisKind.SCALED:
                found = clipped(evidence, meanings) or found  # scaled, to a norm that no gradient has by itself
            if found is not None and found.conclusive:
                return found
            fitting = fitting or found
    return fitting


def _seen(found: Finding, conclusive: Sequence[Diagnosis]) -> bool:
    """Whether another parameter proves the same kind and factor."""
    mine = found.diagnosis
    return any(
        other.kind is mine.kind
        and mine.factor is not None
        and other.factor is not None
        and abs(other.factor - mine.factor) <= CLOSE * abs(mine.factor)
        for other in conclusive
    )


def _last(evidence: Evidence, rounding: Rounding | None) -> Diagnosis:
    """Rounded on the way, where that was seen and explains how far off it is; else unknown."""
    if rounding is None or not evidence.finite or off_by(evidence) > PASSED_ON * rounding.epsilon:
        return unknown(evidence)
    return Diagnosis(
        DiagnosisKind.LOW_PRECISION,
        f"dθ is off by at most {off_by(evidence):.0e} of its largest entry: a gradient on the way to it went through "
        f"{rounding.name}, whose epsilon is {rounding.epsilon:.0e}",
    )


def _clipped_together(evidences: Mapping[Key, Evidence], findings: Mapping[Key, Finding | None]) -> Diagnosis | None:
    """All gradients scaled down by one factor to a round norm over all of them."""
    factors = [found.diagnosis.factor for found in findings.values() if found and found.diagnosis.factor is not None]
    scaled = [found for found in findings.values() if found and found.diagnosis.kind is DiagnosisKind.SCALED]
    if len(scaled) < 2 or len(scaled) < len(findings) or any(e.right.any() for e in evidences.values()):
        return None
    factor = float(np.median(factors))
    if any(abs(one - factor) > CLOSE * abs(factor) for one in factors):
        return None
    norm = float(np.sqrt(sum(np.sum(np.square(evidence.analytic)) for evidence in evidences.values())))
    epsilon = max(evidence.epsilon for evidence in evidences.values())
    found = clipped_to_round_norm(factor, norm, " over all of θ", epsilon)
    return found.diagnosis if found else None
