"""The batch copied once into the precision of the check, with its first values again for every evaluation of J."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_gradcheck.borrowing.layout_copies import has_natural_layout, layout_copies
from torch_gradcheck.borrowing.loan import check_has_float64
from torch_gradcheck.borrowing.tensor_copies import is_freed, write_back
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.objective.variables import Variable
from torch_gradcheck.precision.dtypes import in_precision
from torch_gradcheck.torch_internals.tensors import version_of


class BatchCopy:
    """The caller's batch with every tensor copied: floating ones into `dtype`, on the device they are on.

    `dtype` None leaves all in their own, and in their memory layout. A tensor that occurs twice is one tensor in the
    copy too. An evaluation may write to its batch; `fresh` hands out the first values again.

    Args:
        batch: the caller's.
        dtype: of the floating tensors.
        lent: the tensors of the batch that are lent like parameters. A leaf stays the object that it is; for any other
            one each evaluation gets a copy with a graph, which it may write to.
    """

    def __init__(self, batch: Any, dtype: torch.dtype | None, lent: Sequence[Variable] = ()) -> None:
        self._dtype = dtype
        self._lent = {id(each.stands_for): each for each in lent}
        self._copies: dict[int, torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []  # the originals, so that no id is used twice
        self._structure = rebuilt(batch, self._copied)
        self._first = {id(copy): copy.detach().clone() for copy in self._copies.values()}
        self._versions = {id(copy): version_of(copy) for copy in self._copies.values()}

    def fresh(self) -> Any:
        """The batch in new containers, its tensors holding their first values."""
        given: dict[int, torch.Tensor] = {}
        return rebuilt(self._structure, lambda tensor: self._given(tensor, given))

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self._lent:
            return tensor
        if tensor.is_meta:
            raise InvalidRequestError("batch holds a tensor on the meta device, which has no numbers to compute with.")
        if self._dtype is torch.float64:
            check_has_float64("a tensor of the batch", tensor)
        if id(tensor) not in self._copies:
            self._kept.append(tensor)
            self._copies[id(tensor)] = self._copy_of(tensor).requires_grad_(tensor.requires_grad)
        return self._copies[id(tensor)]

    def _copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._dtype is None and not has_natural_layout(tensor):
            return layout_copies([tensor])[0]
        return tensor.detach().to(in_precision(tensor.dtype, self._dtype), copy=True)

    def _given(self, tensor: torch.Tensor, given: dict[int, torch.Tensor]) -> torch.Tensor:
        """What an evaluation gets in place of a tensor: one for all its places in the batch, noted in `given`."""
        if id(tensor) not in given:
            lent = self._lent.get(id(tensor))
            given[id(tensor)] = self._rewound(tensor) if lent is None else _as_it_was(lent)
        return given[id(tensor)]

    def _rewound(self, tensor: torch.Tensor) -> torch.Tensor:
        if version_of(tensor) != self._versions[id(tensor)] or tensor.grad is not None or is_freed(tensor):
            tensor.grad = None
            write_back(tensor, self._first[id(tensor)])
            self._versions[id(tensor)] = version_of(tensor)
        return tensor


def _as_it_was(lent: Variable) -> torch.Tensor:
    """A leaf, which the loan rewinds, or no leaf."""
    return lent.tensor if lent.is_leaf else lent.tensor.clone()
