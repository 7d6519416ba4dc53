"""Names the mistake in a wrong tensor of a candidate, where rounding hides all but what many entries have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.kind.explanation import ENOUGH, Explanation, Fit
from torch_gradcheck.against_reference.kind.places import what_is_there, wrong_place
from torch_gradcheck.against_reference.kind.rescaled import SCALE, is_rounding
from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, count_meanings, factor_in_words, meaning_of
from torch_gradcheck.diagnosis.kind.kinds import missing, spurious, unknown
from torch_gradcheck.diagnosis.kind.limits import clipped
from torch_gradcheck.diagnosis.kind.orders import MISPLACED, reorderings, reversals, transpositions
from torch_gradcheck.diagnosis.kind.slicewise import along_in_words, are_independent, axes_of_slices, fitted_by_slices
from torch_gradcheck.diagnosis.kind.terms import LARGEST, factors_by_slices, factors_in_words
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, Role
from torch_gradcheck.reporting.words import times
from torch_gradcheck.training_step.diagnosis import step_evidence

OF_KERNELS = (
    FactorMeaning(math.log2(math.e), "log2(e), as of exp2 in place of exp"),
    FactorMeaning(math.log(2.0), "ln(2), as of exp2 in place of exp"),
)
"""Factors that kernels are known to leave or forget."""

COARSER = {"bfloat16": 2.0**-7, "float16 (or TF32)": 2.0**-10, "float32": 2.0**-23}
"""Machine epsilons of what a computation in a finer precision may go through."""

AS_MUCH = 8.0
"""A coarser precision explains an error that is at least 1/8 of what it loses."""

CLEARLY_WORSE = 3.0
"""An error is looked into as one of rounding from 3 times on what the reference loses: else noise is part of it."""

MOST_DIGITS = 5
"""Digits behind the point that a measured number is given with, at most."""

LEFT_AT_FIRST = 0.6
"""Of many slices the first ones are fitted first; a fit that leaves more than this of their error is dropped."""

PREFERRED = 0.7
"""A factor is the explanation unless another term leaves less than 0.7 of what the factor leaves."""


CONSTANT = "1"
"""The name of the term that is the same everywhere."""


class Term(NamedTuple):
    """A tensor that a gradient may hold a multiple of, and its name."""

    words: str
    values: Floats


def diagnosed(
    verdicts: Sequence[Judged], tolerance: float, rescaled: Callable[[], Sequence[Floats]]
) -> list[Diagnosis | None]:
    """The kind of mistake of every tensor; None for those that are not wrong.

    Args:
        verdicts: all tensors of the candidate, gradients first.
        tolerance: that they were judged by.
        rescaled: runs the candidate under larger upstream gradients and returns its gradients, in the order of
            `verdicts`; called where a mistake is of no other kind.
    """
    found = [_worded(each, _diagnosis(each, verdicts, tolerance)) for each in verdicts]
    if not [k for k, each in enumerate(found) if each and _may_be_rounding(verdicts[k], each)]:
        return found
    pairs = zip(verdicts, found, strict=True)
    larger = [*rescaled(), *[None] * len(verdicts)]
    return [_by_rounding(judged, each, other) for (judged, each), other in zip(pairs, larger, strict=False)]


def _may_be_rounding(judged: Judged, found: Diagnosis) -> bool:
    gradient, ratio = judged.compared.entry.role is not Role.OUTPUT, judged.rounding_ratio
    return gradient and not found.kind.is_known and (math.isnan(ratio) or CLEARLY_WORSE <= ratio < math.inf)


def _by_rounding(judged: Judged, found: Diagnosis | None, rescaled: Floats | None) -> Diagnosis | None:
    """LOW_PRECISION where an unknown mistake is another one under a larger upstream gradient; else as it was."""
    if found is None or rescaled is None or not _may_be_rounding(judged, found):
        return found
    each = judged.compared
    if not is_rounding(each.candidate[0], each.right, rescaled):
        return found
    dtype = name_of(each.entry.own_dtype)
    coarse = _coarser_by_size(judged)
    how = f"numbers went through {coarse}" if coarse else f"sums are accumulated in {dtype}"
    size = f"{times(judged.rounding_ratio)} times what the reference loses in {dtype}"
    if math.isnan(judged.rounding_ratio):
        size = f"{_share_off(judged):.0e} of its size, where the reference loses nothing in {dtype}"
    message = (
        f"dθ is off by {size}, and otherwise under {SCALE} times the upstream gradient: by rounding and no formula. "
        f"As if {how}, or rounded more often"
    )
    return Diagnosis(DiagnosisKind.LOW_PRECISION, message)


def _coarser_by_size(judged: Judged) -> str:
    """The precision, coarser than the candidate's, that loses about as much as a tensor is off by; "" for none."""
    own, ratio = judged.compared.epsilon, judged.rounding_ratio
    loses = _share_off(judged) if math.isnan(ratio) else ratio * own
    return " or ".join([name for name, e in COARSER.items() if e / AS_MUCH <= loses <= AS_MUCH * e and e > own])


def _share_off(judged: Judged) -> float:
    """The root mean square of the error relative to that of the right tensor."""
    size = root_mean_square(judged.compared.right)
    return root_mean_square(judged.compared.candidate[0] - judged.compared.right) / size if size else math.inf


def _worded(judged: Judged, found: Diagnosis | None) -> Diagnosis | None:
    """The diagnosis, of an output in words for what is no gradient."""
    if found is None or judged.compared.entry.role is not Role.OUTPUT:
        return found
    message = (
        found.message.replace("the right gradient", "the right output").replace("dθ =", "it is").replace("dθ", "it")
    )
    return replace(found, message=message if found.kind.is_known else message + _as_if_rounded(judged))


def _as_if_rounded(judged: Judged) -> str:
    """Words on an output that is off as one that a coarser precision has rounded; "" where it is not."""
    each, share = judged.compared, _share_off(judged)
    off = np.abs(each.candidate[0] - each.right)
    for name, e in COARSER.items():
        if each.epsilon < e <= AS_MUCH * share and np.all(off <= e * np.abs(each.right)):
            return f". No entry is off by more than {name} rounds it, as if it went through that"
    return ""


def _diagnosis(judged: Judged, verdicts: Sequence[Judged], tolerance: float) -> Diagnosis | None:
    if not judged.is_wrong:
        return None
    evidence, explanation = _evidence(judged), Explanation(judged, tolerance)
    with np.errstate(all="ignore"):
        if not evidence.finite:
            return _overflown(judged) or _partial(explanation, evidence) or unknown(evidence)
        return (
            _of_the_whole(evidence)
            or _of_another(explanation, verdicts)
            or _off_by_a_multiple(explanation, evidence, _terms(judged, verdicts))
            or _partial(explanation, evidence, scattered=False)
            or _in_other_places(explanation, evidence)
            or _by_slices(explanation, evidence, _terms(judged, verdicts))
            or _partial(explanation, evidence)
            or _by_slices(explanation, evidence, ())
            or unknown(evidence)
        )


def _evidence(judged: Judged) -> Evidence:
    """The numbers of one tensor; an output has no value of its own beside what it is."""
    entry = judged.compared.entry
    evidence = step_evidence(entry, judged.trial)
    return replace(evidence, theta=np.zeros_like(evidence.theta)) if entry.role is Role.OUTPUT else evidence


def _overflown(judged: Judged) -> Diagnosis | None:
    """LOW_PRECISION: infinite where the right number is finite and beyond the largest of the dtype, and only there."""
    each = judged.compared
    beyond = np.isfinite(each.right) & (np.abs(each.right) > each.largest)
    if not np.array_equal(~np.isfinite(each.candidate[0]), beyond):
        return None
    dtype, number = name_of(each.entry.own_dtype), int(np.sum(beyond))
    message = (
        f"dθ is infinite in {number} of {len(beyond)} entries: they are up to {np.max(np.abs(each.right)):.2g}, and "
        f"{dtype} ends at {each.largest:.5g}"
    )
    return Diagnosis(DiagnosisKind.LOW_PRECISION, message)


def _of_the_whole(evidence: Evidence) -> Diagnosis | None:
    found = missing(evidence, ()) or spurious(evidence, ())
    return found.diagnosis if found else None


def _in_other_places(explanation: Explanation, evidence: Evidence) -> Diagnosis | None:
    """TRANSPOSED, PERMUTED or CLIPPED."""
    if len(explanation.given) >= ENOUGH:
        for kind, orders in (
            (DiagnosisKind.TRANSPOSED, transpositions(evidence)),
            (DiagnosisKind.PERMUTED, chain(reversals(evidence), reorderings(evidence))),
        ):
            words = next((words for order, words in orders if explanation.is_in_order(order)), "")
            if words:
                return Diagnosis(kind, f"dθ is the right gradient {words}: {MISPLACED}")
    found = clipped(evidence, ())
    return found.diagnosis if found and found.diagnosis.kind is DiagnosisKind.CLIPPED else None


def _of_another(explanation: Explanation, verdicts: Sequence[Judged]) -> Diagnosis | None:
    """PERMUTED: it is the right gradient of another argument of the same shape."""
    own = explanation.compared.entry
    for other in verdicts:
        entry = other.compared.entry
        alike = entry is not own and entry.role is not Role.OUTPUT and own.role is not Role.OUTPUT
        if not alike or entry.shape != own.shape or not explanation.is_that_of(other.compared):
            continue
        swapped = Explanation(other, explanation.tolerance).is_that_of(explanation.compared)
        both = f": the gradients of {own.name} and {entry.name} are swapped" if swapped and other.is_wrong else ""
        return Diagnosis(DiagnosisKind.PERMUTED, f"dθ is the right gradient of {entry.name}{both}")
    return None


def _terms(judged: Judged, verdicts: Sequence[Judged]) -> list[Term]:
    """What a tensor may be off by a multiple of: all that the check knows and that has its shape."""
    own = judged.compared
    terms = [Term(CONSTANT, np.ones(len(own.right)))]
    terms += [Term(name, values) for name, values in own.beside.items()]
    alike = [each.compared for each in verdicts if each is not judged and each.compared.shape == own.shape]
    gradients = [each for each in alike if each.entry.role is not Role.OUTPUT]
    return [*terms, *[Term(f"the gradient of {each.entry.name}", each.right) for each in gradients]]


def _off_by_a_multiple(explanation: Explanation, evidence: Evidence, terms: Sequence[Term]) -> Diagnosis | None:
    """SCALED, or off by a multiple of what leaves least: WEIGHT_DECAY of its own value, else MISSING_TERM."""
    factor = explanation.factor()
    fits = [(term, fit) for term in terms if (fit := explanation.multiple_of(term.values))]
    best = min(fits, key=lambda found: found[1].left, default=None)
    if factor is not None and (best is None or best[1].left > PREFERRED * factor.left):
        return _scaled(factor, evidence)
    if best is None:
        return None
    term, fit = best
    own = explanation.compared.entry
    kind = DiagnosisKind.WEIGHT_DECAY if term.words == own.name else DiagnosisKind.MISSING_TERM
    message = f"dθ is off by {_measured(fit.coefficient, fit.uncertainty)} · {term.words}: a term too few or too many"
    return Diagnosis(kind, message, fit.coefficient)


def _scaled(fit: Fit, evidence: Evidence) -> Diagnosis | None:
    factor, many = 1 + fit.coefficient, int(np.sum(evidence.resolved)) >= 2
    meaning = meaning_of(factor, [*OF_KERNELS, *_counts(evidence.shape)], fit.uncertainty / abs(factor))
    if abs(factor + 1) <= max(3 * fit.uncertainty, 1e-5):
        message = f"dθ = −1 × the right gradient (measured: {_measured(factor, fit.uncertainty)}): a sign is flipped"
        return Diagnosis(DiagnosisKind.SIGN_FLIPPED, message, -1.0)
    is_number = evidence.analytic.size == 1
    if not (many or meaning or is_number):
        return None
    message = f"dθ = {_measured(factor, fit.uncertainty)} × the right gradient; "
    message += "of one number, a factor and a term too many look alike" if is_number else "the rest may be rounding"
    return Diagnosis(DiagnosisKind.SCALED, message + (f": {meaning}" if meaning else ""), factor)


def _counts(shape: Sequence[int]) -> list[FactorMeaning]:
    return [
        meaning for axis, size in enumerate(shape) for meaning in count_meanings(size, f"entries along axis {axis}")
    ]


def _measured(value: float, uncertainty: float) -> str:
    """A measured number with what rounding leaves uncertain of it: "1.010 ± 0.001"."""
    if not 0 < uncertainty < math.inf:
        return factor_in_words(value)
    digits = max(0, -math.floor(math.log10(uncertainty)))
    if digits > MOST_DIGITS or abs(value) >= 1e4:
        return f"{factor_in_words(value)} ± {uncertainty:.0e}"
    return f"{value:.{digits}f} ± {uncertainty:.{digits}f}"


def _partial(explanation: Explanation, evidence: Evidence, scattered: bool = True) -> Diagnosis | None:
    """PARTIAL: right but for places that can be named; unless `scattered` only those that are one piece."""
    place = wrong_place(explanation, evidence)
    if place is None or (place.scattered and not scattered):
        return None
    there = what_is_there(explanation, place.where)
    if place.the_rest:
        elsewhere = f"; elsewhere {there.removeprefix(', where ')}" if there else ""
        return Diagnosis(DiagnosisKind.PARTIAL, f"dθ is right in {place.words} only{elsewhere}")
    return Diagnosis(DiagnosisKind.PARTIAL, f"dθ is right except in {place.words}{there}")


def _by_slices(explanation: Explanation, evidence: Evidence, terms: Sequence[Term]) -> Diagnosis | None:
    """PROJECTION: off by a multiple of one of the terms, another one in each slice; without terms SLICEWISE."""
    if len(evidence.shape) < 2 or evidence.analytic.size > LARGEST or evidence.has_complex_axis:
        return None
    off, right = evidence.grid(explanation.off), evidence.grid(explanation.compared.right)
    for axes in axes_of_slices(off.ndim):
        for term in terms:
            fit = fitted_by_slices(off, [evidence.grid(term.values)], axes, LEFT_AT_FIRST)
            if fit is not None and explanation.passes_without(fit.ravel()):
                words = "1 (its mean)" if term.words == CONSTANT else term.words
                message = f"dθ is off by a multiple of {words} {along_in_words(axes)}, another one in each slice"
                return Diagnosis(DiagnosisKind.PROJECTION, message)
        fit = None if terms else fitted_by_slices(off, [right], axes, LEFT_AT_FIRST)
        if fit is not None and are_independent(right, axes) and explanation.passes_without(fit.ravel()):
            factors = 1 + factors_by_slices(fit, right)
            return Diagnosis(
                DiagnosisKind.SLICEWISE, f"dθ is the right gradient {factors_in_words(factors, along_in_words(axes))}"
            )
    return None
