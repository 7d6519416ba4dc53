"""The magnitudes of a tensor's entries, summed in float64, a block at a time: norm, largest, mean, share of zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.arrays import BLOCK, Floats


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """What the absolute values |xᵢ| of a tensor's entries are; a complex entry has one, its modulus.

    Attributes:
        norm: ‖x‖₂.
        largest: max |xᵢ|; 0 of an empty tensor.
        mean: the mean of |xᵢ|; 0 of an empty tensor.
        zeros: the share of entries that are exactly 0, from 0 to 1; of an empty tensor 0.
        finite: whether no entry is NaN or infinity.
    """

    norm: float
    largest: float
    mean: float
    zeros: float
    finite: bool


def magnitudes_of(tensor: torch.Tensor) -> Magnitudes:
    """The magnitudes of a dense or sparse tensor of any precision, on any device; nothing of it changes."""
    with np.errstate(all="ignore"):  # sums may overflow, and the caller may have numpy raise then
        return _magnitudes_of(tensor)


def _magnitudes_of(tensor: torch.Tensor) -> Magnitudes:
    norms, largest, total, zeros = [], [], 0.0, 0
    for block in _blocks(tensor):
        sizes = np.abs(block)
        norms.append(_norm(sizes))
        largest.append(float(np.max(sizes, initial=0.0)))
        total += float(np.sum(sizes))
        zeros += int(np.sum(sizes == 0))
    count = max(tensor.numel(), 1)
    return Magnitudes(
        norm=joint_norm(norms),
        largest=float(np.max(largest, initial=0.0)),
        mean=total / count,
        zeros=zeros / count,
        finite=bool(np.isfinite(largest).all()),
    )


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖₂ of two tensors of one shape; equal entries, infinite ones too, are no distance apart."""
    with np.errstate(all="ignore"):
        return joint_norm([_norm(np.abs(_difference(a, b))) for a, b in zip(_blocks(one), _blocks(other), strict=True)])


def _difference(one: Floats, other: Floats) -> Floats:
    differ = one != other
    return np.subtract(one, other, out=np.zeros_like(one), where=differ)


def _blocks(tensor: torch.Tensor) -> Iterator[Floats]:
    """The entries in C order, float64 or complex128, a block at a time."""
    plain = tensor.detach()
    dense = plain.to_dense() if plain.layout is not torch.strided else plain
    wide = torch.complex128 if dense.is_complex() else torch.float64
    for block in dense.reshape(-1).split(BLOCK):
        yield block.cpu().to(wide).numpy(force=True)  # not every device has float64


def _norm(sizes: Floats) -> float:
    """The Euclidean norm; divided by the largest first, so that no square overflows or is rounded to 0."""
    largest = float(np.max(sizes, initial=0.0))
    if not largest or not math.isfinite(largest):
        return largest
    scaled = sizes / largest
    return largest * math.sqrt(float(np.dot(scaled, scaled)))


def joint_norm(norms: Sequence[float]) -> float:
    """The norm of several tensors as of one, √Σ ‖xᵢ‖²."""
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)
