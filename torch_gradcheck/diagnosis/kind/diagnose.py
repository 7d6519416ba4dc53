"""Names the kind of mistake of one wrong gradient, or of several that may share one mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import CLOSE, FactorMeaning
from torch_gradcheck.diagnosis.kind.finding import Finding
from torch_gradcheck.diagnosis.kind.kinds import ENTRY_BY_ENTRY, KINDS, off_by, unknown
from torch_gradcheck.diagnosis.kind.limits import clipped, clipped_to_round_norm
from torch_gradcheck.precision.lower_precisions import Rounding
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

Key = TypeVar("Key")

ROUNDED_DOWNSTREAM = 8.0
"""How far off a gradient may be that was rounded further downstream, in machine epsilons of its largest entry.

In bfloat16, whose epsilon is 7.8e-3, that is 6 % of the largest entry.
"""


def diagnose(evidence: Evidence, meanings: Sequence[FactorMeaning] = ()) -> Diagnosis | None:
    """The kind of mistake of one gradient, None where no entry is wrong.

    Args:
        evidence: the gradient on trial beside the right one.
        meanings: factors with a meaning in this run, such as the batch size or the number of accumulated gradients;
            factors that mean the same in every run are known besides.
    """
    return diagnose_all({"": evidence}, meanings).get("")


def diagnose_all(
    evidences: Mapping[Key, Evidence], meanings: Sequence[FactorMeaning] = (), rounding: Rounding | None = None
) -> dict[Key, Diagnosis]:
    """The kind of mistake of every gradient with a wrong entry, by key.

    A kind that one gradient is too small to prove, such as a factor in a single entry, counts where another gradient
    proves the same kind and factor.

    Args:
        evidences: all gradients that were tried, the right ones too, since a norm may be clipped over all of them. One
            at a time is asked for.
        meanings: as for `diagnose`.
        rounding: a lower precision that a gradient between the loss and these was found to be rounded to.
    """
    wrong = [key for key in evidences if evidences[key].wrong.any()]
    findings = {key: _finding(evidences[key], meanings) for key in wrong}
    together = _clipped_together(evidences, findings)
    conclusive = [found.diagnosis for found in findings.values() if found is not None and found.conclusive]
    return {
        key: together
        or (
            found.diagnosis
            if found and (found.conclusive or _confirmed(found, conclusive))
            else _rounded_or_unknown(evidences[key], rounding)
        )
        for key, found in findings.items()
    }


def _finding(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> Finding | None:
    """The first kind that this evidence alone proves; else the first that fits; None where none fits."""
    fitting: Finding | None = None
    sample = evidence.sample()
    with np.errstate(all="ignore"):
        for kind in KINDS:
            if sample is not None and kind in ENTRY_BY_ENTRY and kind(sample, meanings) is None:
                continue
            found = kind(evidence, meanings)
            if found is not None and found.diagnosis.kind is DiagnosisKind.SCALED:
                found = clipped(evidence, meanings) or found  # scaled to a round norm, as clipping leaves it
            if found is not None and found.conclusive:
                return found
            fitting = fitting or found
    return fitting


def _confirmed(found: Finding, conclusive: Sequence[Diagnosis]) -> bool:
    """Whether another parameter proves the same kind with the same factor."""
    own = found.diagnosis
    return any(
        other.kind is own.kind
        and own.factor is not None
        and other.factor is not None
        and abs(other.factor - own.factor) <= CLOSE * abs(own.factor)
        for other in conclusive
    )


def _rounded_or_unknown(evidence: Evidence, rounding: Rounding | None) -> Diagnosis:
    """LOW_PRECISION where the rounding found downstream explains how far off the gradient is; else UNKNOWN."""
    if rounding is None or not evidence.finite or off_by(evidence) > ROUNDED_DOWNSTREAM * rounding.epsilon:
        return unknown(evidence)
    return Diagnosis(
        DiagnosisKind.LOW_PRECISION,
        f"dθ is off by at most {off_by(evidence):.0e} of its largest entry: a gradient on the way to it went through "
        f"{rounding.name}, whose epsilon is {rounding.epsilon:.0e}",
    )


def _clipped_together(evidences: Mapping[Key, Evidence], findings: Mapping[Key, Finding | None]) -> Diagnosis | None:
    """CLIPPED, where one factor scales all gradients down to a round norm over all of them; else None."""
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
