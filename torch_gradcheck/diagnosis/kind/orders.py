"""The kinds TRANSPOSED and PERMUTED: the right numbers in the wrong places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.diagnosis.kind.evidence import ERROR_BARS_ALLOWED, FIRST_ENTRIES, OUTLIERS, Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning
from torch_gradcheck.diagnosis.kind.finding import Finding, conclusive
from torch_gradcheck.diagnosis.kind.places import slices, words_of_axis
from torch_gradcheck.reporting.facts import DiagnosisKind

LONGEST = 512
"""Reordered slices are looked for along axes of at most this length: matching them takes length² products."""

MISPLACED = "the right numbers in the wrong places"


def transposed(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """TRANSPOSED: two axes are swapped, whether the shape shows it (2 × 3) or not (3 × 3)."""
    if not evidence.finite or not _as_large(evidence) or _distinct(evidence) < 3:
        return None
    fitting = (words for order, words in transpositions(evidence) if evidence.rearranged(order))
    words = next(fitting, "")
    if not words:
        return None
    return conclusive(DiagnosisKind.TRANSPOSED, f"dθ is the right gradient {words}: {MISPLACED}")


def transpositions(evidence: Evidence) -> Iterator[tuple[Indices, str]]:
    """Orders with two axes swapped, each with its words; the numbers are read one after the other, as a view would."""
    places = _places(evidence)
    for one, other in combinations(range(len(evidence.shape)), 2):
        swapped = np.swapaxes(places, one, other)
        yield swapped.ravel(), "transposed" + ("" if len(evidence.shape) == 2 else f" in axes {one} and {other}")


def permuted(evidence: Evidence, _: Sequence[FactorMeaning]) -> Finding | None:
    """PERMUTED: the right numbers in other places, as reversed or rolled, or slices or entries in another order."""
    if not evidence.finite or not _as_large(evidence) or _distinct(evidence) < 2:
        return None
    for order, words in chain(reversals(evidence), reorderings(evidence), _sorted(evidence)):
        if not np.array_equal(order, np.arange(len(order))) and evidence.rearranged(order):
            return conclusive(DiagnosisKind.PERMUTED, f"dθ is the right gradient {words}: {MISPLACED}")
    return None


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


def reversals(evidence: Evidence) -> Iterator[tuple[Indices, str]]:
    """Orders that read the tensor backwards along one to three axes, each with its words."""
    dimensions = range(len(evidence.shape))
    for count in (1, 2, 3):
        for axes in combinations(dimensions, count):
            if all(evidence.shape[axis] > 2 or len(axes) > 1 for axis in axes):
                where = " and ".join(
                    words_of_axis(len(evidence.shape), axis, evidence.has_channels)[1] for axis in axes
                )
                yield np.flip(_places(evidence), axes).ravel(), f"with {where} reversed"


def reorderings(evidence: Evidence) -> Iterator[tuple[Indices, str]]:
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
    many, length = words_of_axis(len(evidence.shape), axis, evidence.has_channels)[1], len(order)
    shift = int(-order[0]) % length
    if np.array_equal(order, (np.arange(length) - shift) % length):
        return f"with its {many} rolled by {shift if shift <= length // 2 else shift - length}"
    if length <= 8:
        return f"with its {many} in the order {order.tolist()}"
    return f"with {slices(evidence, axis, np.flatnonzero(order != np.arange(length)))} in another order"


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
