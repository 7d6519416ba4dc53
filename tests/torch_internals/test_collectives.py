"""Collectives as operations, and why a check needs to know them: an evaluation of J must not wait for other ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_gradcheck.torch_internals.collectives import collective_of, ranks_of, running_backward


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda: torch.ops.c10d.allreduce_.default, "allreduce"),
        (lambda: torch.ops.c10d.send.default, "send"),
        (lambda: torch.ops._c10d_functional.all_reduce.default, "all_reduce"),
        (lambda: torch.ops._c10d_functional.wait_tensor.default, None),
        (lambda: torch.ops.aten.add.Tensor, None),
    ],
    ids=["allreduce", "send", "functional", "wait", "add"],
)
def test_operations_that_talk_to_other_ranks_are_known(operation: object, name: str | None) -> None:
    assert collective_of(operation()) == name  # type: ignore[operator]


def test_a_group_that_is_unknown_counts_as_more_than_one_rank() -> None:
    assert ranks_of([torch.ones(1), "no such group", 3]) == 2


class Named(torch.autograd.Function):
    """x, whose backward notes what runs."""

    seen: str | None = None

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        Named.seen = running_backward()
        return gradient


def test_the_function_whose_backward_runs_is_named() -> None:
    Named.apply(torch.ones(1, requires_grad=True)).backward()
    assert Named.seen == "Named"
    assert running_backward() is None
