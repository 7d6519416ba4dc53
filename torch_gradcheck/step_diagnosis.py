"""What a training loop did wrong, read off the `.grad` it left: factors of a step, and gradients of other batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from torch_gradcheck.diagnosis import Evidence, Meaning, diagnose_all
from torch_gradcheck.differences.sampling import Floats
from torch_gradcheck.differences.trial import Outcome
from torch_gradcheck.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.numerical import Tried, flat_values
from torch_gradcheck.theta import Theta, ThetaEntry

CLOSE = 5e-3
"""A factor is the number it looks like when it is this close: low precisions leave no more digits."""

MOST = 64
"""So many accumulation steps, or workers, are thought of."""

ROUNDED = float(np.finfo(np.float32).eps)
"""The error bars hold the rounding of `.grad` itself already; this much is left for the diagnosis to allow."""

BARS = 3.0
"""How many error bars a diagnosis may be off by; those of `.grad` are limits."""


IF_MEANT = "If the loop means to clip before step(), say so: clip_norm= or clip_value="


class Reference(NamedTuple):
    """A gradient that `.grad` may hold, or hold as well: what it is of, and its values by position in θ."""

    words: str
    values: Mapping[int, Floats]


def diagnosed(theta: Theta, tried: Mapping[int, Tried], references: Sequence[Reference]) -> dict[int, Diagnosis]:
    """The kind of mistake of every wrong `.grad`, by position in θ."""
    evidences = {position: _evidence(theta[position], each) for position, each in tried.items()}
    found = diagnose_all(evidences, _meanings(evidences.values()))
    for position, diagnosis in found.items():
        if diagnosis.kind is DiagnosisKind.CLIPPED:
            found[position] = replace(diagnosis, message=f"{diagnosis.message}. {IF_MEANT}")
        elif diagnosis.kind not in (DiagnosisKind.SCALED, DiagnosisKind.MISSING):
            found[position] = _of_another_batch(position, evidences[position], references) or diagnosis
    return found


def _evidence(entry: ThetaEntry, tried: Tried) -> Evidence:
    """One parameter's numbers, in its shape."""
    answer = tried.answer
    right, given, error = (np.zeros(entry.coordinates) for _ in range(3))
    outcome = np.full(entry.coordinates, Outcome.UNDECIDED)
    for whole, part in ((right, answer.numeric), (given, tried.analytic), (error, answer.error / BARS)):
        whole[tried.coordinates] = part
    outcome[tried.coordinates] = answer.outcome
    return Evidence(
        analytic=given,
        numeric=np.where(outcome == Outcome.UNDECIDED, np.nan, right),
        error=error,
        wrong=outcome == Outcome.MISMATCH,
        judged=(outcome == Outcome.MATCH) | (outcome == Outcome.MISMATCH),
        theta=flat_values(entry),
        shape=(*entry.shape, 2) if entry.is_complex else entry.shape,
        reached=tried.reached,
        epsilon=ROUNDED,
    )


def _meanings(evidences: Iterable[Evidence]) -> list[Meaning]:
    """The factors that are found, as far as a training loop is known to leave such."""
    factors = [_factor(evidence) for evidence in evidences if evidence.wrong.any() and evidence.resolved.any()]
    return [Meaning(factor, words) for factor in factors if (words := words_of_factor(factor))]


def _factor(evidence: Evidence) -> float:
    n, a = evidence.numeric[evidence.resolved], evidence.analytic[evidence.resolved]
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.dot(a, n) / np.dot(n, n)))


def words_of_factor(factor: float) -> str:
    """What a training loop does to leave `factor` times the right gradient; "" where nothing is known to."""
    if factor <= 0:
        return ""
    exponent = round(np.log2(factor))
    if exponent >= 8 and _close(factor, 2.0**exponent):
        return (
            f"2^{exponent}, a loss scale that was not taken out. Call scaler.unscale_(optimizer) before step(), "
            "or give the monitor scaler="
        )
    for count in range(2, MOST + 1):
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
    return abs(one - other) <= CLOSE * other


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
