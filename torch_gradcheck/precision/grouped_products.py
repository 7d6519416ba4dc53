"""Grouped matrix products in any precision: torch's kernel, behind mixtures of experts, has none in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def grouped_product(
    A: Tensor, B: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """What torch.nn.functional.grouped_mm computes: group i is what lies before `offs[i]` and not in group i − 1.

    Args:
        A: shape (S, K), rows in groups; (G, M, K), a matrix a group; or (M, S), columns in groups where B is (S, N).
        B: shape (G, K, N), a matrix a group; (K, S), columns in groups; or (S, N), rows in groups.
        offs: shape (G,), the ends of the groups; None where both A and B have a matrix a group.
        bias: added to the result.
        out_dtype: the dtype of the result; None for that of A.

    Returns:
        Shape (S, N), (G, M, N) or (M, S). Rows and columns in no group are 0.
    """
    product = _product(A, B, offs)
    product = product if bias is None else product + bias
    return product if out_dtype is None else product.to(out_dtype)


def _product(A: Tensor, B: Tensor, offs: Tensor | None) -> Tensor:
    if offs is None:
        return torch.bmm(A, B)
    groups = _groups(offs)
    if A.ndim == 2 and B.ndim == 2:
        return torch.stack([A[:, group] @ B[group] for group in groups])
    if A.ndim == 2:
        parts, size = [A[group] @ B[i] for i, group in enumerate(groups)], A.shape[0]
        return torch.cat([*parts, A.new_zeros(size - groups[-1].stop, B.shape[-1])])
    parts, size = [A[i] @ B[:, group] for i, group in enumerate(groups)], B.shape[1]
    return torch.cat([*parts, A.new_zeros(A.shape[1], size - groups[-1].stop)], 1)


def _groups(offs: Tensor) -> list[slice]:
    """The indices of each group; the ends are read one by one, which a record of J notices, unlike `tolist` here."""
    ends = [0, *[int(offs[i]) for i in range(len(offs))]]
    return [slice(start, stop) for start, stop in pairwise(ends)]
