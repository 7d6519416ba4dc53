"""Copies lie in memory as the originals do: a backward that looks at strides meets what it met in the run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_gradcheck.diagnosis.culprit.argument_copies import laid_out_alike

NUMBERS = torch.arange(24.0).view(4, 6)

LAYOUTS: dict[str, Tensor] = {
    "contiguous": NUMBERS,
    "transposed": NUMBERS.T,
    "sliced": NUMBERS[:, ::2],
    "a column": NUMBERS[:, 1],
    "expanded": NUMBERS[:, :1].expand(4, 6),
    "expanded, in front": NUMBERS[0].expand(3, 6),
    "one number": torch.tensor(2.0).expand(2, 3),
    "empty": NUMBERS[:0],
    "no axis": torch.tensor(2.0),
    "windows that overlap": torch.arange(6.0).unfold(0, 3, 1),
    "conjugated": torch.complex(NUMBERS, NUMBERS).conj(),
    "sparse": NUMBERS.to_sparse(),
}


@pytest.mark.parametrize("tensor", LAYOUTS.values(), ids=LAYOUTS)
def test_a_copy_has_the_numbers_and_none_of_the_memory(tensor: Tensor) -> None:
    copy = laid_out_alike(tensor)
    assert torch.equal(copy.to_dense(), tensor.to_dense())
    if tensor.layout is torch.strided and tensor.numel():
        assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "a column", "expanded", "expanded, in front", "one number"])
def test_a_copy_has_the_strides(layout: str) -> None:
    assert laid_out_alike(LAYOUTS[layout]).stride() == LAYOUTS[layout].stride()


def test_a_copy_is_in_the_graph() -> None:
    leaf = torch.ones(4, 1, requires_grad=True)
    (2 * laid_out_alike(leaf.expand(4, 3))).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[6.0]] * 4
