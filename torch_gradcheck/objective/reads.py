"""The captured tensors that J computes with: others are in reach of its closure, and no matter of J."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.variables import Variable
from torch_gradcheck.torch_internals.autograd import leaf_of, node_of, nodes_from
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.operations import flatten
from torch_gradcheck.torch_internals.tensors import storage_key


def read_by(objective: Objective, variables: Sequence[Variable]) -> list[Variable]:
    """Those of the variables that J reads, in one evaluation at θ; none takes none.

    A leaf is on trial even if autograd does not reach it: its gradient is lost. Another tensor was computed before J,
    and J that takes its value only, detached, takes it for a constant.
    """
    if not variables:
        return []
    reads = _Reads()
    with torch.enable_grad(), objective.evaluation(at_theta=True), reads:
        loss = objective.compute()
    reached = {id(leaf_of(node)) for node in nodes_from([node_of(loss)])}
    used = [each for each in variables if storage_key(each.tensor) in reads.memory]
    return [each for each in used if each.is_leaf or id(each.tensor) in reached]


class _Reads(DispatchMode):
    """Notes the memory that operations are given.

    Attributes:
        memory: the `storage_key` of every tensor.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.memory: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = flatten([*args, *(kwargs or {}).values()])
        self.memory |= {storage_key(each) for each in given if each.layout is torch.strided}
        return func(*args, **(kwargs or {}))
