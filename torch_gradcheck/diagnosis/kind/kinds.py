"""The kinds of mistake: each function fits one kind to the evidence, and returns None where it does not fit.

A fit must explain the judged entries within their error bars and leave next to nothing of the mistake: a wrong kind is
worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_gradcheck.diagnosis.kind.evidence import ERROR_BARS_ALLOWED, Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, factor_in_words, meaning_of
from torch_gradcheck.diagnosis.kind.finding import Finding, Kind, conclusive
from torch_gradcheck.diagnosis.kind.limits import clipped
from torch_gradcheck.diagnosis.kind.orders import permuted, transposed
from torch_gradcheck.diagnosis.kind.places import wrong_places
from torch_gradcheck.diagnosis.kind.scaling import ROUNDINGS, scaled, weight_decay
from torch_gradcheck.diagnosis.kind.terms import missing_term, projection
from torch_gradcheck.precision.lower_precisions import rounding_of_all
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

CLEARLY_NONZERO = 100.0
"""A gradient where there should be none is this many times the noise around 0, at least."""


def missing(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """MISSING: the gradient is zero or None everywhere, though J depends on the parameter."""
    if np.any(evidence.analytic) or not evidence.resolved.any():
        return None
    how = "zero everywhere" if evidence.reached else "None"
    never = "" if evidence.reached else ", and the backward never reaches it"
    size = float(np.max(np.abs(evidence.numeric[evidence.resolved])))
    return conclusive(
        DiagnosisKind.MISSING,
        f"dθ is {how}, though J depends on it (derivatives up to {size:.1e}){never}: detached, under no_grad, or "
        "forgotten",
    )


def spurious(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """SPURIOUS: J does not depend on the parameter, to within noise, and yet there is a gradient."""
    right, bars = np.abs(evidence.numeric[evidence.judged]), evidence.error_bar[evidence.judged]
    on_trial = float(np.max(np.abs(evidence.analytic[evidence.wrong]), initial=0.0))
    largest = float(np.max(right, initial=0.0))
    if not evidence.finite or np.any(right > ERROR_BARS_ALLOWED * bars) or on_trial <= CLEARLY_NONZERO * largest:
        return None
    return conclusive(
        DiagnosisKind.SPURIOUS,
        f"dθ is up to {on_trial:.1e} where it should be zero: J does not depend on it ({_of_nothing(largest)})",
    )


def _of_nothing(largest: float) -> str:
    return f"differences of at most {largest:.0e}, which is noise" if largest else "it does not move at any step"


def low_precision(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """LOW_PRECISION: every entry is a number of a lower precision, and right to within that precision."""
    rounding = rounding_of_all([evidence.analytic[evidence.judged]]) if evidence.finite else None
    if rounding is None or rounding.epsilon <= evidence.epsilon:
        return None
    off = off_by(evidence)
    if off > ROUNDINGS * rounding.epsilon:
        return None
    return conclusive(
        DiagnosisKind.LOW_PRECISION,
        f"dθ is right but for rounding: every entry is a {rounding.name} number, off by at most {off:.0e} of the "
        f"largest (the epsilon of {rounding.name} is {rounding.epsilon:.0e}): it went through {rounding.name}",
    )


def off_by(evidence: Evidence) -> float:
    """The largest |analytic − numeric| beyond its error bar, relative to the largest right entry."""
    off = np.abs(evidence.off[evidence.judged]) - evidence.error_bar[evidence.judged]
    largest = float(np.max(np.abs(evidence.numeric[evidence.judged]), initial=0.0))
    return float(np.max(off, initial=0.0)) / largest if largest else float("inf")


def partial(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> Finding | None:
    """PARTIAL: right except in places that can be named, such as "rows 3-5 of 10"."""
    places = wrong_places(evidence)
    if not places:
        return None
    return conclusive(DiagnosisKind.PARTIAL, f"dθ is right except in {places}{_what_is_there(evidence, meanings)}")


KINDS: tuple[Kind, ...] = (
    missing,
    spurious,
    scaled,
    weight_decay,
    transposed,
    permuted,
    clipped,
    low_precision,
    partial,
    missing_term,
    projection,
)
"""All kinds, in the order in which they are tried."""

ENTRY_BY_ENTRY = frozenset({scaled, weight_decay, clipped, low_precision, missing_term})
"""Kinds that hold of all entries, or not even of a part of them: a sample tells where they do not fit."""


def unknown(evidence: Evidence) -> Diagnosis:
    """UNKNOWN: no kind fits; the message compares the two gradients."""
    return Diagnosis(DiagnosisKind.UNKNOWN, _hint(evidence))


def _hint(evidence: Evidence) -> str:
    if not evidence.finite:
        wrong = ~np.isfinite(evidence.analytic)
        return f"dθ is not finite in {int(wrong.sum())} of {wrong.size} entries"
    sample = evidence.sample()
    with np.errstate(all="ignore"):
        both = _scaled_and_decayed(evidence) if sample is None or _scaled_and_decayed(sample) else ""
        return both or _compared(evidence)


def _scaled_and_decayed(evidence: Evidence) -> str:
    """The sentence on a gradient factor · right + decay · θ; "" where it does not fit, or has fewer than 4 entries."""
    n, a, theta = (x[evidence.resolved] for x in (evidence.numeric, evidence.analytic, evidence.theta))
    if len(n) < 4 or not evidence.stands_out:
        return ""
    w = evidence.weights[evidence.resolved]
    columns, weighted = np.stack([w * n, w * theta], axis=1), w * a
    if not (np.isfinite(columns).all() and np.isfinite(weighted).all()):
        return ""
    (factor, decay), *_ = np.linalg.lstsq(columns, weighted, rcond=None)
    predicted = factor * evidence.numeric + decay * evidence.theta
    residual = evidence.residual(predicted, factor)
    if not np.isfinite(residual):
        return ""
    return (
        f"dθ = {factor_in_words(factor)} × the right gradient {'+' if decay > 0 else '−'} "
        f"{factor_in_words(abs(decay))} · θ (residual {residual:.0e}): a factor on all of the gradient but its weight "
        "decay, or on the weight decay alone"
    )


def _compared(evidence: Evidence) -> str:
    """The sentence on length and direction of the gradient on trial, relative to the right one."""
    n, a = evidence.numeric[evidence.judged], evidence.analytic[evidence.judged]
    norms = np.linalg.norm(a) * np.linalg.norm(n)
    if not norms:
        return "no simple relation to the right gradient"
    length, cosine = float(np.linalg.norm(a) / np.linalg.norm(n)), float(np.dot(a, n) / norms)
    if len(a) == 1:
        return f"dθ is {factor_in_words(float(a[0] / n[0]))} times the right gradient, a factor of no known meaning"
    return (
        f"no simple relation to the right gradient: {factor_in_words(length)} times as long, at a cosine of "
        f"{cosine:.6g} with it, and off by {np.linalg.norm(a - n) / np.linalg.norm(n):.1e} of its length"
    )


def _what_is_there(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> str:
    """Words on the wrong entries of a PARTIAL mistake, where one thing holds for all of them; else ""."""
    there = evidence.wrong
    a, n = evidence.analytic[there], evidence.numeric[there]
    if not np.all(np.isfinite(a)):
        infinite = int(np.sum(~np.isfinite(a)))
        return ", where it is not finite" if infinite == len(a) else f", of which {infinite} not finite"
    if not np.any(a):
        return ", where it is zero"
    if np.all(np.abs(n) <= ERROR_BARS_ALLOWED * evidence.error_bar[there]):
        return ", where it should be zero"
    factor = float(np.dot(a, n) / np.dot(n, n)) if np.any(n) else np.nan
    if len(a) > 1 and np.all(
        np.abs(a - factor * n) <= 10 * evidence.tolerance * np.abs(a) + 3 * evidence.error_bar[there]
    ):
        meaning = meaning_of(factor, meanings)
        return f", where it is {factor_in_words(factor)} × the right one{f', {meaning}' if meaning else ''}"
    return ""
