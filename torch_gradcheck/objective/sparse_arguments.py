"""Sparse tensors as arguments: the values that they specify, and the same places with other values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_gradcheck.torch_internals.sparse import stored_indices, stored_values

COMPRESSED_ROWS = frozenset({torch.sparse_csr, torch.sparse_bsr})
COMPRESSED = COMPRESSED_ROWS | {torch.sparse_csc, torch.sparse_bsc}
BLOCKED = frozenset({torch.sparse_bsr, torch.sparse_bsc})


def is_sparse(tensor: Tensor) -> bool:
    """Whether a tensor is of one of the five sparse layouts: COO, CSR, CSC, BSR, BSC."""
    return tensor.layout is torch.sparse_coo or tensor.layout in COMPRESSED


def values_of(tensor: Tensor) -> Tensor:
    """The specified values, sharing memory, without a graph: shape (nnz, *dense) or, in blocks, (nnz, *block)."""
    bare = tensor.detach()
    return stored_values(bare) if bare.layout is torch.sparse_coo else bare.values()


def with_values(tensor: Tensor, values: Tensor) -> Tensor:
    """A sparse tensor with the layout, shape and places of another one; it has no graph.

    Args:
        tensor: the other one.
        values: of the shape of `values_of(tensor)`.
    """
    bare, values = tensor.detach(), values.detach()
    if bare.layout is torch.sparse_coo:
        return torch.sparse_coo_tensor(
            stored_indices(bare), values, bare.shape, is_coalesced=bare.is_coalesced(), check_invariants=False
        )
    return torch.sparse_compressed_tensor(
        *_places(bare), values, bare.shape, layout=bare.layout, check_invariants=False
    )


class SparseFromValues(Function):
    """`with_values` with a graph: the gradient at the places goes on to the values, whether it is sparse or dense.

    That of torch's own constructors cannot be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, pattern: Tensor) -> Tensor:
        """A sparse tensor with these values in the places of the pattern."""
        ctx.set_materialize_grads(False)  # not every sparse layout has zeros
        ctx.places, ctx.shape = places_of(pattern), values.shape
        return with_values(pattern, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        """Its gradient at the places."""
        (gradient,) = gradients
        if gradient is None:
            return None, None
        dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
        return dense.reshape(-1)[ctx.places].view(ctx.shape), None


def _places(bare: Tensor) -> tuple[Tensor, Tensor]:
    if bare.layout in COMPRESSED_ROWS:
        return bare.crow_indices(), bare.col_indices()
    return bare.ccol_indices(), bare.row_indices()


def places_of(tensor: Tensor) -> Tensor:
    """The flat index of every value in the dense tensor, shape (values,), int64. A place may be specified twice."""
    bare = tensor.detach()
    values = values_of(bare)
    if bare.layout is torch.sparse_coo:
        return _places_in_coo(stored_indices(bare), bare.shape, values)
    numbered = torch.arange(1, values.numel() + 1, dtype=torch.float64, device=values.device).view(values.shape)
    dense = with_values(bare, numbered).to_dense().reshape(-1)
    found = dense.nonzero().squeeze(1)
    return found[dense[found].argsort()]


def _places_in_coo(indices: Tensor, shape: torch.Size, values: Tensor) -> Tensor:
    """The flat indices of entries of a tensor with sparse dimensions, numbered by `indices`, and dense ones."""
    sparse = len(indices)
    block = math.prod(shape[sparse:])
    first = torch.zeros(values.shape[0], dtype=torch.int64, device=values.device)
    for dimension in range(sparse):
        first = first * shape[dimension] + indices[dimension]
    return (first[:, None] * block + torch.arange(block, device=values.device)).reshape(-1)


def densified(tensor: Tensor) -> Tensor:
    """The same tensor with every entry specified, of the same layout."""
    bare = tensor.detach()
    if bare.layout is torch.sparse_coo:
        return _all_specified(bare.coalesce())
    ones = torch.ones_like(bare.to_dense()).to_sparse(layout=bare.layout, dense_dim=bare.dense_dim(), **_block(bare))
    return with_values(ones, bare.to_dense().reshape(-1)[places_of(ones)].view(values_of(ones).shape))


def _block(bare: Tensor) -> dict[str, Any]:
    """The size of the blocks as an argument of `to_sparse`; nothing where entries are specified one by one."""
    batch = _places(bare)[0].dim() - 1
    return {"blocksize": values_of(bare).shape[batch + 1 : batch + 3]} if bare.layout in BLOCKED else {}


def _all_specified(coalesced: Tensor) -> Tensor:
    sparse = coalesced.sparse_dim()
    places = torch.ones(coalesced.shape[:sparse], device=coalesced.device).nonzero().t()
    values = coalesced.to_dense().reshape(places.shape[1], *coalesced.shape[sparse:])
    return torch.sparse_coo_tensor(places, values, coalesced.shape, is_coalesced=True, check_invariants=False)
