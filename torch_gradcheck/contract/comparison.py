"""Two runs that should give the same: what they may differ by, and the words for where they differ by more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_gradcheck.contract.run import Run
from torch_gradcheck.objective.objective import ROUNDOFF_BETWEEN_CALLS
from torch_gradcheck.precision.dtypes import epsilon, is_inexact
from torch_gradcheck.torch_internals.devices import in_float64

SPREADS = 3.0
"""Runs may lie three times as far apart as two equal ones did: there may be others that lie further apart."""


@dataclass(frozen=True)
class Allowance:
    """What the entries of two right gradients may differ by: what rounding, in sums of another order, can do.

    It is `tolerance` of the largest entry of the tensor, as for the rows of the report: mistakes of layouts, masks and
    missing gradients are far larger. Where a gradient is 0 but for rounding it is `floor`, and where two equal runs
    differ, `SPREADS` times what they differ by.

    Attributes:
        tolerance: the largest relative error that passes.
        floor: 1000 machine epsilons of the largest numbers that the gradient is made of.
    """

    tolerance: float
    floor: float

    def of(self, tensor: torch.Tensor | None, spread: float = 0.0, name: str = "", terms: float = 0.0) -> float:  # noqa: ARG002
        """In the unit of the tensor.

        Args:
            tensor: the one that is right.
            spread: what two equal runs differ by.
            name: what sentences call it.
            terms: the sum of the absolute values that were added up to it; 0 for no sum of the contract's own.
        """
        return max(self.tolerance * largest(tensor), self.floor, SPREADS * spread)


def allowance(run: Run, cotangents: Sequence[torch.Tensor], tolerance: float, dtype: torch.dtype) -> Allowance:
    """What runs like this one may differ by; terms of the size of ⟨v, y⟩ may have cancelled in its gradients."""
    outputs = max([1.0, *map(largest, run.outputs)])
    terms = max([0.0, *map(largest, run.gradients)]) + max([0.0, *map(largest, cotangents)]) * outputs
    return Allowance(tolerance, ROUNDOFF_BETWEEN_CALLS * epsilon(dtype) * terms)


def size_of_terms(tensors: Sequence[torch.Tensor | None]) -> float:
    """The largest sum, entry by entry, of the absolute values of tensors that are added up; None is zeros."""
    sizes = [tensor.detach().abs() for tensor in tensors if tensor is not None]
    return largest(sum(sizes[1:], sizes[0])) if sizes else 0.0


def same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors hold the same numbers, NaN being NaN; None, no gradient, is a number for no tensor."""
    if one is None or other is None:
        return one is other
    return torch.equal(one, other) or (one.shape == other.shape and distance(one, other) == 0)


def largest(tensor: torch.Tensor | None) -> float:
    """The largest finite absolute value; 0 for none."""
    if tensor is None or not tensor.numel() or not is_inexact(tensor):
        return 0.0
    size = float(tensor.detach().abs().max())
    return size if size < torch.inf else float(torch.nan_to_num(tensor.detach().abs(), 0.0, 0.0, 0.0).max())


def distance(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    """The largest distance of two entries; None is zeros. Infinite where only one is NaN, or shapes differ."""
    off = _off(one, other)
    return torch.inf if off is None else float(off.max()) if off.numel() else 0.0


def difference(found: torch.Tensor | None, expected: torch.Tensor | None, allowed: float) -> str:
    """Where two tensors differ by more than `allowed`, as "is 2 at [0, 1], should be 1 (3 of 4 entries differ)".

    None, no gradient, is zeros. "" where they do not differ.
    """
    off = _off(found, expected)
    if off is None:
        return f"has the shape {_shape(found)}, should have {_shape(expected)}"
    wrong = ~(off <= allowed)
    count = int(wrong.sum())
    if not count:
        return ""
    worst = int(off.argmax())
    index = [int(each) for each in torch.unravel_index(torch.tensor(worst), off.shape)] if off.dim() else []
    entries = f" ({count} of {off.numel()} entries differ)" if off.numel() > 1 else ""
    at = f" at {index}" if index else ""
    is_there = "is None" if found is None else f"is {_number(found, worst)}{at}"
    there = at if found is None else ""
    should = f"{_number(expected, worst)}{there}" if expected is not None else "None or zeros"
    return f"{is_there}, should be {should}{entries}"


def _off(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """The distances entry by entry, in float64; None where shapes differ."""
    some = one if one is not None else other
    if some is None:
        return torch.zeros((), dtype=torch.float64)
    a, b = (torch.zeros_like(some) if each is None else each.detach() for each in (one, other))
    if a.shape != b.shape:
        return None
    a, b = in_float64(a), in_float64(b)
    off = (a - b).abs()
    off[(a == b) | (a.isnan() & b.isnan())] = 0.0
    return torch.nan_to_num(off, nan=torch.inf, posinf=torch.inf)


def _number(tensor: torch.Tensor | None, position: int) -> str:
    if tensor is None:
        return "None"
    value = tensor.detach().resolve_conj().reshape(-1)[position].item()
    return f"{value:.6g}" if isinstance(value, float | complex) else str(value)


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)
