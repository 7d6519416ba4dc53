"""The kinds of mistake: each function fits one kind to the evidence, and returns None where it does not fit.

A fit must explain the judged entries within their error bars and leave next to nothing of the mistake: a wrong kind is
worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.diagnosis.kind.evidence import ERROR_BARS_ALLOWED, FIRST_ENTRIES, OUTLIERS, Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, meaning_of
from torch_gradcheck.diagnosis.kind.places import slices, words_of_axis, wrong_places
from torch_gradcheck.precision.lower_precisions import rounding_of_all
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

LONGEST = 512
"""Reordered slices are looked for along axes of at most this length: matching them takes length² products."""

CLIP_EPS = 1e-6
"""The number that torch.nn.utils.clip_grad_norm_ adds to the norm it divides by."""

ROUNDINGS = 4.0
"""Rounding to a lower precision may move an entry by at most 4 of its machine epsilons times the largest entry."""

MISPLACED = "the right numbers in the wrong places"


class Finding(NamedTuple):
    """A diagnosis, and whether this parameter alone proves it."""

    diagnosis: Diagnosis
    conclusive: bool


Kind = Callable[[Evidence, Sequence[FactorMeaning]], Finding | None]


def missing(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """MISSING: the gradient is zero or None everywhere, though J depends on the parameter."""
    if np.any(evidence.analytic) or not evidence.resolved.any():
        return None
    how = "zero everywhere" if evidence.reached else "None: the backward never reaches it"
    size = float(np.max(np.abs(evidence.numeric[evidence.resolved])))
    return _conclusive(
        DiagnosisKind.MISSING,
        f"dθ is {how}, though J depends on it (derivatives up to {size:.1e}): detached, under no_grad, or forgotten",
    )


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
    if not np.isfinite(residual) or factor == 0 or abs(factor - 1) <= CLEARLY_NOT_ONE * residual:
        return None
    meaning = meaning_of(factor, meanings)
    if abs(factor + 1) <= 1e-5:
        return _conclusive(
            DiagnosisKind.SIGN_FLIPPED,
            f"dθ = −1 × the right gradient {_everywhere(n, residual)}: a sign is flipped",
            -1.0,
        )
    message = f"dθ = {_number(factor)} × the right gradient {_everywhere(n, residual)}"
    found = Diagnosis(DiagnosisKind.SCALED, message + (f": {meaning}" if meaning else ""), factor)
    return Finding(found, conclusive=len(n) > 1 or bool(meaning))


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
    message = f"dθ is off by {_number(factor)} · θ in every entry (residual {residual:.0e}): {what}"
    varied = len(np.unique(np.round(np.abs(theta[informative]), 12))) > 1
    return Finding(Diagnosis(DiagnosisKind.WEIGHT_DECAY, message, factor), conclusive=varied)


def transposed(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """TRANSPOSED: two axes are swapped, whether the shape shows it (2 × 3) or not (3 × 3)."""
    if not evidence.finite or not _as_large(evidence) or _distinct(evidence) < 3:
        return None
    places = _places(evidence)
    for one, other in combinations(range(len(evidence.shape)), 2):
        swapped = np.swapaxes(places, one, other)
        as_it_is = swapped.shape == evidence.shape and evidence.rearranged(swapped.ravel())
        if as_it_is or evidence.rearranged(swapped.reshape(evidence.shape).ravel()):
            axes = "" if len(evidence.shape) == 2 else f" in axes {one} and {other}"
            return _conclusive(DiagnosisKind.TRANSPOSED, f"dθ is the right gradient transposed{axes}: {MISPLACED}")
    return None


def permuted(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """PERMUTED: the right numbers in other places, as reversed or rolled, or slices or entries in another order."""
    if not evidence.finite or not _as_large(evidence) or _distinct(evidence) < 2:
        return None
    for order, words in chain(_reversals(evidence), _reorderings(evidence), _sorted(evidence)):
        if evidence.rearranged(order):
            return _conclusive(DiagnosisKind.PERMUTED, f"dθ is the right gradient {words}: {MISPLACED}")
    return None


def clipped(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """CLIPPED: limited in value, or scaled down to a round norm."""
    return (_clipped_in_value(evidence) or _clipped_in_norm(evidence)) if evidence.finite else None


def low_precision(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """LOW_PRECISION: every entry is a number of a lower precision, and right to within that precision."""
    rounding = rounding_of_all([evidence.analytic[evidence.judged]]) if evidence.finite else None
    if rounding is None or rounding.epsilon <= evidence.epsilon:
        return None
    off = off_by(evidence)
    if off > ROUNDINGS * rounding.epsilon:
        return None
    return _conclusive(
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
    return _conclusive(DiagnosisKind.PARTIAL, f"dθ is right except in {places}{_what_is_there(evidence, meanings)}")


KINDS: tuple[Kind, ...] = (missing, scaled, weight_decay, transposed, permuted, clipped, low_precision, partial)
"""All kinds, in the order in which they are tried."""

ENTRY_BY_ENTRY = frozenset({scaled, weight_decay, clipped, low_precision})
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
    if len(n) < 4:
        return ""
    w = evidence.weights[evidence.resolved]
    (factor, decay), *_ = np.linalg.lstsq(np.stack([w * n, w * theta], axis=1), w * a, rcond=None)
    predicted = factor * evidence.numeric + decay * evidence.theta
    residual = evidence.residual(predicted, factor)
    if not np.isfinite(residual):
        return ""
    return (
        f"dθ = {_number(factor)} × the right gradient {'+' if decay > 0 else '−'} {_number(abs(decay))} · θ (residual "
        f"{residual:.0e}): a factor on all of it but a weight decay, or on that alone"
    )


def _compared(evidence: Evidence) -> str:
    """The sentence on length and direction of the gradient on trial, relative to the right one."""
    n, a = evidence.numeric[evidence.judged], evidence.analytic[evidence.judged]
    norms = np.linalg.norm(a) * np.linalg.norm(n)
    if not norms:
        return "no simple relation to the right gradient"
    return (
        f"no simple relation to the right gradient: length {_number(float(np.linalg.norm(a) / np.linalg.norm(n)))} × "
        f"the right one, cosine {float(np.dot(a, n) / norms):.6g} to it, off by "
        f"{np.linalg.norm(a - n) / np.linalg.norm(n):.1e} of it"
    )


def _conclusive(kind: DiagnosisKind, message: str, factor: float | None = None) -> Finding:
    return Finding(Diagnosis(kind, message, factor), conclusive=True)


def _everywhere(resolved: Floats, residual: float) -> str:
    return f"in every entry (residual {residual:.0e})" if len(resolved) > 1 else "in its one entry that is not zero"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value - 1) > 5e-4 else f"{value:.8g}"


def _as_large(evidence: Evidence) -> bool:
    """Whether both gradients are as large on average: else they do not consist of the same numbers.

    It saves sorting millions of them. The few entries that may fit worse must still fit five times better than before.
    """
    known = evidence.judged
    on_trial, right = np.mean(np.abs(evidence.analytic[known])), np.mean(np.abs(evidence.numeric[known]))
    error_bar = ERROR_BARS_ALLOWED * float(np.mean(evidence.error_bar[known]))
    return bool(abs(on_trial - right) <= OUTLIERS / 5 * (on_trial + right) + error_bar)


def _distinct(evidence: Evidence) -> int:
    """How many different numbers the right gradient has, at least, among its resolved entries."""
    resolved = np.flatnonzero(evidence.resolved)
    if not len(resolved):
        return 0
    resolved = resolved[:: max(len(resolved) // FIRST_ENTRIES, 1)]  # of millions, thousands tell
    values = np.sort(evidence.numeric[resolved])
    spacing = 10 * (float(np.median(evidence.error_bar[resolved])) + evidence.tolerance * np.abs(values[1:]))
    return 1 + int(np.sum(np.diff(values) > spacing))


def _places(evidence: Evidence) -> Indices:
    """The flat position of every entry, as an array of the parameter's shape."""
    return np.arange(evidence.numeric.size, dtype=np.int64).reshape(evidence.shape)


def _reversals(evidence: Evidence) -> Iterator[tuple[Indices, str]]:
    """Orders that read the tensor backwards along one to three axes, each with its words."""
    dimensions = range(len(evidence.shape))
    for count in (1, 2, 3):
        for axes in combinations(dimensions, count):
            if all(evidence.shape[axis] > 2 or len(axes) > 1 for axis in axes):
                where = " and ".join(words_of_axis(len(evidence.shape), axis)[1] for axis in axes)
                yield np.flip(_places(evidence), axes).ravel(), f"with {where} reversed"


def _reorderings(evidence: Evidence) -> Iterator[tuple[Indices, str]]:
    """Orders of slices along one axis, each slice matched to the closest one of the right gradient, with words."""
    analytic, numeric = evidence.grid(evidence.analytic), np.nan_to_num(evidence.grid(evidence.numeric))
    for axis, length in enumerate(evidence.shape):
        if 2 <= length <= LONGEST:
            on_trial, right = (np.moveaxis(values, axis, 0).reshape(length, -1) for values in (analytic, numeric))
            order = _matched(on_trial, right)
            if len(set(order.tolist())) == length:
                yield np.take(_places(evidence), order, axis).ravel(), _order_in_words(evidence, axis, order)


def _matched(slices_of: Floats, among: Floats) -> Indices:
    """For each slice the number of the closest slice in `among`, by ‖a − b‖² = ‖a‖² − 2·a·b + ‖b‖²."""
    square = np.sum(among**2, axis=1)
    return np.asarray(np.argmin(square[None, :] - 2 * slices_of @ among.T, axis=1), dtype=np.int64)


def _order_in_words(evidence: Evidence, axis: int, order: Indices) -> str:
    many, length = words_of_axis(len(evidence.shape), axis)[1], len(order)
    shift = int(-order[0]) % length
    if np.array_equal(order, (np.arange(length) - shift) % length):
        return f"with its {many} rolled by {shift if shift <= length // 2 else shift - length}"
    if length <= 8:
        return f"with its {many} in the order {order.tolist()}"
    return f"with {slices(evidence.shape, axis, np.flatnonzero(order != np.arange(length)))} in another order"


def _sorted(evidence: Evidence) -> Iterator[tuple[Indices, str]]:
    """The order that matches the smallest entry to the smallest right one, and so on, with its words."""
    if np.all(np.isfinite(evidence.numeric)) and _same_numbers(evidence) and _distinct(evidence) >= 3:
        order = np.empty(evidence.numeric.size, dtype=np.int64)
        order[np.argsort(evidence.analytic, kind="stable")] = np.argsort(evidence.numeric, kind="stable")
        yield order, "with its entries in another order"


def _same_numbers(evidence: Evidence) -> bool:
    """Whether both gradients, sorted, are alike: to sort numbers takes a tenth of the time of sorting places."""
    on_trial, right = np.sort(evidence.analytic), np.sort(evidence.numeric)
    allowed = evidence.tolerance * (np.abs(on_trial) + np.abs(right))
    allowed += ERROR_BARS_ALLOWED * np.max(evidence.error_bar, initial=0.0) + evidence.rounding
    return bool(np.mean(np.abs(on_trial - right) > allowed) <= OUTLIERS)


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
    between = " and ".join(f"{limit:.4g}" for limit in limits)
    return _conclusive(
        DiagnosisKind.CLIPPED,
        f"dθ is the right gradient limited in value: {len(stuck)} entries that should be beyond stand at {between}",
    )


def _at(values: Floats, limit: float) -> Flags:
    return np.asarray(np.isclose(values, limit, rtol=1e-9, atol=0))


def _clipped_in_norm(evidence: Evidence) -> Finding | None:
    """CLIPPED in norm: scaled down to a norm that is a round number, as no gradient's norm is by itself."""
    found = scaled(evidence, ())
    if found is None or not evidence.judged.all():
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
    if factor is None or not 0 < factor < 1:
        return None
    before = norm / factor
    limit = next((limit for limit in (norm, norm * (before + CLIP_EPS) / before) if _is_round(limit, epsilon)), None)
    if limit is None:
        return None
    return _conclusive(
        DiagnosisKind.CLIPPED,
        f"dθ = {_number(factor)} × the right gradient, whose norm{over} of {before:.4g} was limited to {limit:.4g}",
        factor,
    )


def _is_round(number: float, epsilon: float) -> bool:
    """Whether `number` has at most two significant digits, as 1.0, 0.25 or 12, to within rounding."""
    return abs(number - float(f"{number:.1e}")) <= max(1e-10, 64 * epsilon) * abs(number)


def _what_is_there(evidence: Evidence, meanings: Sequence[FactorMeaning]) -> str:
    """Words on the wrong entries of a PARTIAL mistake, where one thing holds for all of them; else ""."""
    there: Flags = evidence.wrong
    a, n = evidence.analytic[there], evidence.numeric[there]
    if not np.all(np.isfinite(a)):
        return f", where {int(np.sum(~np.isfinite(a)))} are not finite"
    if not np.any(a):
        return ", where it is zero"
    factor = float(np.dot(a, n) / np.dot(n, n)) if np.any(n) else np.nan
    if len(a) > 1 and np.all(
        np.abs(a - factor * n) <= 10 * evidence.tolerance * np.abs(a) + 3 * evidence.error_bar[there]
    ):
        meaning = meaning_of(factor, meanings)
        return f", where it is {_number(factor)} × the right one{f', {meaning}' if meaning else ''}"
    return ""
