"""What a sparse COO tensor stores, and why a check needs it: it moves entries also where a place is given twice."""

from __future__ import annotations

import torch

from torch_gradcheck.torch_internals.sparse import stored_indices, stored_values


def test_an_uncoalesced_tensor_shows_what_it_stores() -> None:
    """`indices()` and `values()`, which are public, refuse one that gives a place twice."""
    tensor = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 0]]), torch.tensor([1.0, 2.0, 3.0]), (3,), check_invariants=False
    )
    assert not tensor.is_coalesced()
    assert stored_values(tensor).tolist() == [1, 2, 3]
    assert stored_indices(tensor).tolist() == [[1, 1, 0]]


def test_the_values_share_memory() -> None:
    tensor = torch.ones(2).to_sparse()
    stored_values(tensor)[0] = 5
    assert tensor.to_dense().tolist() == [5, 1]
