"""Names the mistake of a training loop by the `.grad` it left: factors of a step, and gradients of other batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.findings import evidence_of
from torch_gradcheck.diagnosis.kind.diagnose import diagnose_all
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning
from torch_gradcheck.diagnosis.kind.limits import limited_in_value
from torch_gradcheck.objective.theta import Theta, ThetaEntry
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.training_step.accumulated import accumulated_and_clipped
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.verdicts.trial import ParameterTrial

FACTOR_PRECISION = 5e-3
"""The relative distance within which a factor counts as the number it is near: 0.5 %, all that low precisions leave."""

LARGEST_COUNT = 64
"""The largest number of accumulation steps, or workers, that a factor is read as."""

GRAD_EPSILON = float(np.finfo(np.float32).eps)
"""The machine epsilon that the diagnosis allows for: float32's, since the error bars hold the rounding of `.grad`."""

NEVER_REACHED = "the backward never reached it, zero_grad() came after it, or the check came before it"
"""The usual causes of a `.grad` of None."""

BARS_ARE_LIMITS = 3.0
"""A diagnosis allows this many error bars. Those of `.grad` are limits already, so they are divided by it."""


ROUND_NORM = 1e-5
"""The relative distance within which a norm counts as a number of two digits: clipping leaves it at its limit."""

IF_MEANT = "If the loop means to clip before step(), say so: clip_norm= or clip_value="


class Reference(NamedTuple):
    """A gradient that `.grad` may hold, alone or added to its own: a name for it, and its values by position in θ."""

    words: str
    values: Mapping[int, Floats]


def diagnosed(
    theta: Theta,
    trial: Mapping[int, ParameterTrial],
    references: Sequence[Reference],
    step: TrainingStep,
    unclipped: Mapping[int, Floats],
) -> dict[int, Diagnosis]:
    """The kind of mistake of every wrong `.grad`, by position in θ.

    Args:
        theta: the parameters.
        trial: `.grad` beside what it should be.
        references: gradients that it may hold, at the entries of the trials.
        step: what the loop declared.
        unclipped: what `.grad` should be before it is clipped.
    """
    evidences = {position: step_evidence(theta[position], each) for position, each in trial.items()}
    found = diagnose_all(evidences, _meanings(evidences.values(), step))
    for position, diagnosis in found.items():
        if not np.any(evidences[position].analytic):
            found[position] = _missing(evidences[position])
        elif diagnosis.kind not in (DiagnosisKind.SCALED, DiagnosisKind.CLIPPED):
            found[position] = _of_another_batch(position, evidences[position], references) or diagnosis
    if found and not any(diagnosis.kind.is_of_the_whole_gradient for diagnosis in found.values()):
        for words, values in references:
            if together := accumulated_and_clipped(evidences, unclipped, words, values):
                return dict.fromkeys(found, together)
    named = _all_alike(evidences, _norm_clipped(evidences, found))
    return named | _not_clipped(evidences, named, unclipped, step)


def _not_clipped(
    evidences: Mapping[int, Evidence],
    found: Mapping[int, Diagnosis],
    unclipped: Mapping[int, Floats],
    step: TrainingStep,
) -> dict[int, Diagnosis]:
    """The mistake of clipping that was declared and not done, where that explains most that is wrong."""
    explained = [at for at in found if evidences[at].finite and _is_unclipped(evidences[at], unclipped[at])]
    if 2 * len(explained) <= len(found):
        return {}
    given = np.concatenate([evidence.analytic for evidence in evidences.values()])
    norm, largest = float(np.linalg.norm(given)), float(np.max(np.abs(given)))
    if step.clip_norm is not None and norm > (1 + FACTOR_PRECISION) * step.clip_norm:
        message = (
            f"clip_norm={step.clip_norm:g} was declared, and the gradients were not clipped: their norm is {norm:.4g}"
        )
        factor: float | None = None if step.clip_value else norm / step.clip_norm
    elif step.clip_value is not None and largest > (1 + FACTOR_PRECISION) * step.clip_value:
        message = (
            f"clip_value={step.clip_value:g} was declared, and the gradients were not clipped: "
            f"their largest entry is {largest:.4g}"
        )
        factor = None
    else:
        return {}
    kind = DiagnosisKind.UNKNOWN if factor is None else DiagnosisKind.SCALED
    diagnosis = Diagnosis(kind, f"{message}. Clip before step(), or leave it out", factor)
    alike = [at for at, each in found.items() if factor and each.factor and _close(each.factor, factor)]
    return dict.fromkeys([*explained, *alike], diagnosis)


def _is_unclipped(evidence: Evidence, unclipped: Floats) -> bool:
    """Whether `.grad` is the right gradient as it is before it is clipped."""
    right = np.linalg.norm(evidence.numeric)
    gain = float(np.linalg.norm(unclipped) / right) if right else 1.0
    return bool(np.isfinite(evidence.residual(unclipped, gain=gain)))


def _missing(evidence: Evidence) -> Diagnosis:
    how, why = ("zero everywhere", "") if evidence.reached else ("None", f": {NEVER_REACHED}")
    size = float(np.max(np.abs(evidence.numeric[evidence.judged]), initial=0.0))
    message = f".grad is {how}, though J depends on it (derivatives up to {size:.1e}){why}"
    return Diagnosis(DiagnosisKind.MISSING, message)


def _norm_clipped(evidences: Mapping[int, Evidence], found: dict[int, Diagnosis]) -> dict[int, Diagnosis]:
    """Where all are scaled down alike, and to a norm that is a round number, they were clipped."""
    factors = [diagnosis.factor for diagnosis in found.values() if diagnosis.kind is DiagnosisKind.SCALED]
    given = np.concatenate([evidence.analytic for evidence in evidences.values()])
    if 2 * len(factors) <= len(found) or not np.all(np.isfinite(given)):
        return found
    factor, norm = float(np.median(np.array(factors, dtype=float))), float(np.linalg.norm(given))
    if not 0 < factor < 1 or abs(norm - float(f"{norm:.1e}")) > ROUND_NORM * norm or words_of_factor(factor):
        return found
    clipped = Diagnosis(
        DiagnosisKind.CLIPPED,
        f"dθ = {factor:.4g} × the right gradient, and the norm of all of them together is {norm:.4g}",
        factor,
    )
    return dict.fromkeys(found, clipped)


def _all_alike(evidences: Mapping[int, Evidence], found: Mapping[int, Diagnosis]) -> dict[int, Diagnosis]:
    """A tensor too small to tell its mistake has that of another one, where that explains it."""
    limit = max(
        (float(np.max(np.abs(evidences[at].analytic))) for at, each in found.items() if _in_value(each)), default=0.0
    )
    alike = dict(found)
    for position, diagnosis in found.items():
        evidence = evidences[position]
        if diagnosis.kind.needs_many_entries and not words_of_factor(diagnosis.factor or 0.0):
            known = (other for other in found.values() if not other.kind.needs_many_entries or other.factor)
            other = next((other for other in known if _explains(other, evidence, limit)), diagnosis)
            alike[position] = _at_limit(other, evidence, limit) if _in_value(other) else other
    return {position: _with_hint(diagnosis) for position, diagnosis in alike.items()}


def _at_limit(diagnosis: Diagnosis, evidence: Evidence, limit: float) -> Diagnosis:
    """Clipping in value as it is of this tensor: its own entries that stand at the limit."""
    return replace(diagnosis, message=limited_in_value(evidence.analytic[evidence.wrong], (-limit, limit)))


def _with_hint(diagnosis: Diagnosis) -> Diagnosis:
    if diagnosis.kind is not DiagnosisKind.CLIPPED:
        return diagnosis
    return replace(diagnosis, message=f"{diagnosis.message}. {IF_MEANT}")


def _explains(diagnosis: Diagnosis, evidence: Evidence, limit: float) -> bool:
    """Whether the mistake of another parameter explains this one's."""
    if _in_value(diagnosis):
        return evidence.explains(np.clip(evidence.numeric, -limit, limit))
    if diagnosis.factor is None:
        return False
    if diagnosis.kind is DiagnosisKind.WEIGHT_DECAY:
        return evidence.explains(evidence.numeric + diagnosis.factor * evidence.theta)
    off = np.abs(evidence.analytic - diagnosis.factor * evidence.numeric)[evidence.judged]
    return bool(np.all(off <= BARS_ARE_LIMITS * max(1.0, abs(diagnosis.factor)) * evidence.error_bar[evidence.judged]))


def _in_value(diagnosis: Diagnosis) -> bool:
    return diagnosis.kind is DiagnosisKind.CLIPPED and diagnosis.factor is None


def step_evidence(entry: ThetaEntry, trial: ParameterTrial) -> Evidence:
    """One parameter's numbers; their error bars are limits, and hold the rounding of `.grad` already."""
    evidence = evidence_of(entry, trial, tolerance=0.0)
    return replace(evidence, error_bar=evidence.error_bar / BARS_ARE_LIMITS, epsilon=GRAD_EPSILON)


def _meanings(evidences: Iterable[Evidence], step: TrainingStep) -> list[FactorMeaning]:
    """The factors that are found, as far as a training loop is known to leave such."""
    factors = [_factor(evidence) for evidence in evidences if evidence.wrong.any() and evidence.resolved.any()]
    known = [] if step.window is None else step.window.factor_meanings()
    first = any(meaning.comes_first for meaning in known)
    return [FactorMeaning(factor, words, first) for factor in factors if (words := words_of_factor(factor, known))]


def _factor(evidence: Evidence) -> float:
    n, a = evidence.numeric[evidence.resolved], evidence.analytic[evidence.resolved]
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.dot(a, n) / np.dot(n, n), posinf=0.0, neginf=0.0))


def words_of_factor(factor: float, known: Sequence[FactorMeaning] = ()) -> str:
    """The mistake of a training loop that leaves `factor` times the right gradient; "" where none is known.

    Args:
        factor: what was found.
        known: factors with a meaning in this step, which come first.
    """
    if factor <= 0:
        return ""
    of_this_step = [meaning.words for meaning in known if _close(factor, meaning.factor)]
    if of_this_step:
        return ", or ".join(of_this_step)
    exponent = round(np.log2(factor))
    if exponent >= 8 and _close(factor, 2.0**exponent):
        return (
            f"2^{exponent}, a loss scale that was not taken out. Call scaler.unscale_(optimizer) before step(), "
            "or give the monitor scaler="
        )
    for count in range(2, LARGEST_COUNT + 1):
        if _close(factor, count):
            return (
                f"accumulated {count} times (no zero_grad()), the loss not divided by {count} accumulation steps, "
                f"or summed over {count} workers where a mean was meant"
            )
        if _close(factor, 1 / count):
            return (
                f"the loss divided by {count} accumulation steps that were not taken, or a mean over {count} workers "
                "where there was one"
            )
    return ""


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= FACTOR_PRECISION * other


def _of_another_batch(position: int, evidence: Evidence, references: Sequence[Reference]) -> Diagnosis | None:
    """Whether `.grad` is a known gradient of another batch, or holds one besides its own."""
    for words, values in references:
        other = values.get(position)
        if other is None or other.shape != evidence.analytic.shape or not np.any(other) or not evidence.finite:
            continue
        if evidence.explains(other):
            return Diagnosis(DiagnosisKind.STALE, f"dθ is {words}, not that of this batch: stale")
        if evidence.explains(evidence.numeric + other):
            return Diagnosis(
                DiagnosisKind.ACCUMULATED,
                f"dθ is the right gradient plus {words}: zero_grad() is missing. "
                "If gradients are accumulated on purpose, tell the monitor over how many batches: accumulate=",
            )
    return None
