"""The kind WRONG_SUM, by rows: a right sum but for rows left out or counted twice, as the tail of a batch or a tile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.places import in_ranges
from torch_gradcheck.diagnosis.kind.sums import ENOUGH, EXACT, is_right_sum, products_with
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

MOST_TERMS = 4_000_000
"""No more numbers than this are laid out, one a row and entry."""

MOST_ROWS = 2_000
"""Among at most so many rows all runs of neighbours are tried."""

MOST_TRIED = 16
"""Of runs that may be it, so many are summed up, at most."""

MOST_UNKNOWN = 256
"""Any set of rows is looked for among at most 256, by as many equations and more."""


class Terms(NamedTuple):
    """What a sum adds up.

    Attributes:
        words: what is added up, in words.
        axis: of the upstream gradient, along which it adds.
        values: what each index along it adds, shape (indices, entries of the parameter).
    """

    words: str
    axis: int
    values: Floats


class Rows(NamedTuple):
    """Indices along an axis that a sum treats otherwise than the others.

    Attributes:
        indices: of them, sorted.
        twice: whether they are counted twice; else they are left out.
    """

    indices: Indices
    twice: bool


def lost_rows(evidence: Evidence, upstream: Floats, factors: Mapping[str, Floats]) -> Diagnosis | None:
    """The diagnosis of a gradient that would be a right sum over the upstream gradient but for some rows; else None.

    Args:
        evidence: of a vector, or of the matrix of a linear layer.
        upstream: the gradient that arrived at the one call that uses it.
        factors: what it may be multiplied by, of its shape but for the last axis, by name.
    """
    if len(evidence.analytic) < ENOUGH or not evidence.finite or not evidence.judged.all():
        return None
    for terms in _sums(evidence.shape, upstream, factors):
        if is_right_sum(evidence, terms.values.sum(0)) and (rows := rows_lost_by(evidence.analytic, terms.values)):
            return Diagnosis(DiagnosisKind.WRONG_SUM, _in_words(terms, rows))
    return None


def rows_lost_by(taken: Floats, terms: Floats) -> Rows | None:
    """The rows that a sum lacks, or has twice; None where it is off otherwise.

    Args:
        taken: the sum that was taken, shape (entries,).
        terms: what each row adds, shape (rows, entries).
    """
    off = terms.sum(0) - taken
    if not np.any(off) or len(terms) < 2:
        return None
    candidates = (*_runs(terms, off), *_every_other(len(terms)), *_any_set(terms, off))
    return next((rows for rows in candidates if _explains(rows, terms, off)), None)


def _sums(shape: tuple[int, ...], upstream: Floats, factors: Mapping[str, Floats]) -> Iterator[Terms]:
    if len(shape) == 1:
        yield from _sums_to_vector(shape[0], upstream, factors)
    elif len(shape) == 2 and upstream.shape[-1:] in (shape[:1], shape[1:]):
        yield from _sums_to_matrix((shape[0], shape[1]), upstream, factors)


def _sums_to_vector(length: int, upstream: Floats, factors: Mapping[str, Floats]) -> Iterator[Terms]:
    """Over all axes but one: b_j = Σ_i g_ij, or Σ_i g_ij x_ij."""
    products = products_with(upstream, factors)
    for kept in (axis for axis, size in enumerate(upstream.shape) if size == length):
        for axis in (axis for axis in range(upstream.ndim) if axis != kept):
            others = tuple(other for other in range(upstream.ndim) if other not in (kept, axis))
            for of, product in products:
                summed = product.sum(axis=others)
                yield Terms(of, axis, summed if axis < kept else summed.T)


def _sums_to_matrix(shape: tuple[int, int], upstream: Floats, factors: Mapping[str, Floats]) -> Iterator[Terms]:
    """Over all axes but the last: W_jk = Σ_i g_ij x_ik, or transposed."""
    for name, values in factors.items():
        for axis in range(upstream.ndim - 1):
            if upstream.shape[axis] * shape[0] * shape[1] > MOST_TERMS:
                continue
            g, x = (np.moveaxis(each, axis, 0) for each in (upstream, values))
            g, x = (each.reshape(len(each), -1, each.shape[-1]) for each in (g, x))
            for left, right in ((g, x), (x, g)):
                if (left.shape[-1], right.shape[-1]) == shape:
                    products = left.transpose(0, 2, 1) @ right
                    of = f"the products of the upstream gradient and {name}"
                    yield Terms(of, axis, products.reshape(len(products), -1))


def _runs(terms: Floats, off: Floats) -> list[Rows]:
    """Runs of neighbours whose terms, seen along what is lacking, add up to it, or to as much too much."""
    if len(terms) > MOST_ROWS:
        return []
    ends = np.concatenate([[0.0], np.cumsum(terms @ off) / (off @ off)])
    shares = np.abs(ends[None, :] - ends[:, None])
    fitting = np.triu(np.abs(shares - 1) <= EXACT * len(terms) * (1 + np.max(np.abs(ends))))
    found = np.argwhere(fitting)[:MOST_TRIED]
    return [Rows(np.arange(first, last), bool(ends[last] < ends[first])) for first, last in found if first < last]


def _every_other(count: int) -> list[Rows]:
    return [Rows(np.arange(first, count, 2), twice=False) for first in (0, 1)]


def _any_set(terms: Floats, off: Floats) -> list[Rows]:
    """Any set, where there are more entries than rows: Σ w_i terms_i = what is lacking, solved for w."""
    count, entries = terms.shape
    if count > min(entries, MOST_UNKNOWN):
        return []
    some = np.linspace(0, entries - 1, min(entries, 4 * count)).astype(int)
    weights, _, rank, _ = np.linalg.lstsq(terms[:, some].T, off[some])
    if rank < count:
        return []
    return [Rows(np.flatnonzero(np.abs(weights - weight) < 0.5), weight < 0) for weight in (1, -1)]


def _explains(rows: Rows, terms: Floats, off: Floats) -> bool:
    """Whether these rows, and no others, are what is lacking or too much; all of them are no loss of rows."""
    if not 0 < len(rows.indices) < len(terms):
        return False
    sign = -1 if rows.twice else 1
    return bool(np.linalg.norm(sign * terms[rows.indices].sum(0) - off) <= EXACT * np.linalg.norm(off))


def _in_words(terms: Terms, rows: Rows) -> str:
    nouns, verb = ("index", "is") if len(rows.indices) == 1 else ("indices", "are")
    which = f"{nouns} {in_ranges(rows.indices)} of {len(terms.values)} along axis {terms.axis}"
    how = "counted twice; the plain" if rows.twice else "left out; the whole"
    return f"dθ is the sum of {terms.words}, but {which} {verb} {how} sum is right"
