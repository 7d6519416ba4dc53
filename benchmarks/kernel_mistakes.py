"""The mistakes that the benchmark of kernels plants, each with the rows in which it must be found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_kernels import Change, Mistake, Operation

FACTORS = (1.1, 1.03, 1.01, 1.005, 1.002, 1.001)
"""Of one gradient as a whole."""

UNIFORM = "upstream gradient taken for uniform"
"""The mistake that upstream gradients of 1 hide."""

OUTPUT = "output"
"""The row of the output."""


@dataclass(frozen=True)
class Planted:
    """A mistake in an operation.

    Attributes:
        name: of the kind of mistake.
        mistake: what is done.
        rows: where it may show; in no other row anything is wrong.
    """

    name: str
    mistake: Mistake
    rows: frozenset[str]


def planted(operation: Operation, dtype: torch.dtype, seed: int) -> Iterator[Planted]:
    """Every mistake that the operation can have; of one gradient, that of the argument whose turn it is by the seed.

    To sum in float32 is right, so that of a kernel in float32 no sum is spoiled.
    """
    names = operation.on_trial
    one = names[seed % len(names)]
    for factor in FACTORS:
        yield Planted(f"factor {factor:g}", Mistake(one, times(factor)), frozenset({one}))
    yield Planted("one entry doubled", Mistake(one, one_entry(2.0)), frozenset({one}))
    yield Planted("one entry 10 % too large", Mistake(one, one_entry(1.1)), frozenset({one}))
    first, shared = names[0], frozenset(operation.shared)
    yield Planted("one row 10 % too large", Mistake(first, one_row(1.1)), frozenset({first}))
    yield Planted("one row 1 % too large", Mistake(first, one_row(1.01)), frozenset({first}))
    if shared:
        yield Planted("rows past the end read", Mistake(reads_rows=True), shared)
    if shared and dtype is not torch.float32:
        yield Planted("sums in the dtype, row by row", Mistake(sums_low=True), shared)
    if operation.is_reduced:
        yield Planted("columns past the end read", Mistake(reads_columns=True), frozenset({*names, OUTPUT}))
    yield Planted(UNIFORM, Mistake(upstream=mean), frozenset(names))
    yield Planted("output 1 % too large", Mistake(output=times(1.01)), frozenset({OUTPUT}))


def times(factor: float) -> Change:
    """A factor of all."""
    return lambda tensor: factor * tensor


def one_entry(factor: float) -> Change:
    """A factor of the entry in the middle, by size, of the upper half."""

    def change(tensor: Tensor) -> Tensor:
        chosen = tensor.abs().flatten().argsort()[int(0.75 * tensor.numel())]
        return tensor.flatten().index_fill(0, chosen, factor * tensor.flatten()[chosen].item()).view_as(tensor)

    return change


def one_row(factor: float) -> Change:
    """A factor of a row in the middle."""

    def change(tensor: Tensor) -> Tensor:
        factors = torch.ones_like(tensor)
        factors[len(tensor) // 2] = factor
        return factors * tensor

    return change


def mean(g: Tensor) -> Tensor:
    """The mean along the last dimension in place of each entry: right where all are alike."""
    return g.mean(-1, keepdim=True).expand_as(g)
