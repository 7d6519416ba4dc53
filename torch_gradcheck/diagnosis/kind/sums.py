"""The kind WRONG_SUM: the gradient of a vector is a sum of the right things over the wrong axes, or of other things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.slicewise import along_in_words
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

EXACT = 1e-9
"""The sum that a backward has taken is known to rounding."""

ENOUGH = 3
"""A sum is recognised in at least 3 entries."""

MOST_ROWS = 64
"""Of so many rows, at most, each is tried as what was taken instead of their sum."""


def wrong_sum(evidence: Evidence, upstream: Floats, factors: Mapping[str, Floats]) -> Diagnosis | None:
    """The diagnosis of a vector whose gradient is a sum over the upstream gradient, and not the right one; else None.

    Args:
        evidence: of the vector.
        upstream: the gradient that arrived at the one call that uses it.
        factors: tensors by name; by those of its shape, the upstream gradient may be multiplied first.
    """
    if len(evidence.shape) != 1 or len(evidence.analytic) < ENOUGH or not evidence.finite:
        return None
    sums = list(_sums(upstream, factors, len(evidence.analytic)))
    taken = next((words for words, values in sums if _equal(values, evidence.analytic)), "")
    if not taken or not np.any(evidence.analytic):
        return None
    instead = next((words for words, values in sums if evidence.judged.all() and is_right_sum(evidence, values)), "")
    message = f"dθ is {taken}" + (f", where {instead} is right" if instead else ", which is not the right one")
    return Diagnosis(DiagnosisKind.WRONG_SUM, message)


def _sums(upstream: Floats, factors: Mapping[str, Floats], length: int) -> Iterator[tuple[str, Floats]]:
    """The sums of this length, with words: over all axes but one, and single rows instead of a sum."""
    products = products_with(upstream, factors)
    for axis, size in enumerate(upstream.shape):
        others = tuple(other for other in range(upstream.ndim) if other != axis)
        if size == length and others:
            yield from ((f"the sum of {of} {_over(others)}", np.sum(product, axis=others)) for of, product in products)
    if upstream.ndim == 2 and upstream.shape[1] == length:
        yield from ((f"row {row} of the upstream gradient", upstream[row]) for row in range(len(upstream))[:MOST_ROWS])


def _over(axes: tuple[int, ...]) -> str:
    return along_in_words(axes).replace("along", "over")


def _equal(one: Floats, other: Floats) -> bool:
    return bool(np.linalg.norm(one - other) <= EXACT * np.linalg.norm(other))


def products_with(upstream: Floats, factors: Mapping[str, Floats]) -> list[tuple[str, Floats]]:
    """The upstream gradient, and its products with those of the factors that have its shape, with words."""
    same = {name: values for name, values in factors.items() if values.shape == upstream.shape}
    products = [(f"the upstream gradient times {name}", upstream * values) for name, values in same.items()]
    return [("the upstream gradient", upstream), *products]


def is_right_sum(evidence: Evidence, values: Floats) -> bool:
    """Whether a sum is the right gradient."""
    off = np.linalg.norm(values - evidence.numeric)
    return bool(off <= evidence.tolerance * np.linalg.norm(values) + np.linalg.norm(evidence.error_bar))
