"""Float64 for operations whose kernels know lower precisions only: the same products by other operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.torch_internals.operations import OpOverload, existing


def grouped_mm(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Products of groups of rows or columns, as `torch.nn.functional.grouped_mm` defines them.

    Every group takes part in every product, and what is not its own is left out afterwards. That costs a factor of the
    number of groups, and reads no offset: where the groups move with θ, a record of the operations stays right.

    Args:
        a: (rows, k), or (groups, rows, k).
        b: (k, columns), or (groups, k, columns).
        offs: (groups,), the end of each group along the dimension that only one of them has, or both share: k.
        bias: added to the product; torch itself takes none yet.
        out_dtype: of the product.
    """
    product = _grouped_product(a, b, offs)
    product = product if bias is None else product + bias
    return product if out_dtype is None else product.to(out_dtype)


def _grouped_product(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor:
    if offs is None or (a.dim() == 3 and b.dim() == 3):
        return torch.matmul(a, b)
    if a.dim() == 2 and b.dim() == 2:
        return torch.matmul(torch.where(_members(offs, a.shape[1])[:, None, :], a, 0), b)
    if a.dim() == 2:
        return torch.where(_members(offs, len(a))[:, :, None], torch.matmul(a, b), 0).sum(0)
    return torch.where(_members(offs, b.shape[1])[:, None, :], torch.matmul(a, b), 0).sum(0)


def _members(offs: Tensor, size: int) -> Tensor:
    """(groups, size): whether an index lies in a group, which begins where the one before it ends."""
    ends = offs.to(torch.int64)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    index = torch.arange(size, device=offs.device)
    return (index >= begins[:, None]) & (index < ends[:, None])


SUBSTITUTES: dict[OpOverload, Callable[..., Any]] = dict.fromkeys(existing("_grouped_mm.default"), grouped_mm)
"""Operation → a function of the same arguments that runs in float64, where this torch has the operation."""
