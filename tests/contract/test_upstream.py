"""Gradients that reach a function just as they are given: the very tensor, in its layout, or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torch_gradcheck.contract.upstream import gradients_under

SEEN: list[Tensor | None] = []


class Sees(torch.autograd.Function):
    """x and 2x; keeps what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return x.clone(), 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        SEEN[:] = grads
        return sum((n * grad for n, grad in enumerate(grads, start=1) if grad is not None), start=torch.zeros(2, 3))


@pytest.mark.parametrize("v", [torch.ones(3, 2).t(), torch.ones(()).expand(2, 3)], ids=["transposed", "expanded"])
def test_a_gradient_comes_as_the_same_memory(v: Tensor) -> None:
    x = torch.ones(2, 3, requires_grad=True)
    (gradient,) = gradients_under(Sees.apply(x), [v, None], [x])  # type: ignore[no-untyped-call]
    seen, other = SEEN
    assert seen is not None
    assert other is None
    assert (seen.data_ptr(), seen.stride()) == (v.data_ptr(), v.stride())
    assert torch.equal(gradient, torch.ones(2, 3))  # type: ignore[arg-type]


def test_none_for_every_output_reaches_the_function() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    SEEN[:] = [x]
    gradients_under(Sees.apply(x), [None, None], [x])  # type: ignore[no-untyped-call]
    assert SEEN == [None, None]


def test_complex_outputs_leaves_and_outputs_without_a_graph() -> None:
    x = torch.ones(2, dtype=torch.complex128, requires_grad=True)
    v = torch.tensor([1j, 2.0], dtype=torch.complex128)
    (gradient,) = gradients_under([x * 2, x, torch.ones(2)], [v, v, torch.ones(2)], [x])
    assert torch.equal(gradient, 3 * v)  # type: ignore[arg-type]


def test_a_graph_can_be_kept() -> None:
    x = torch.ones(2, requires_grad=True)
    y, v = x.exp(), torch.ones(2)
    first = gradients_under([y], [v], [x], keep_graph=True)
    (second,) = gradients_under([y], [v], [x])
    assert torch.equal(second, first[0])  # type: ignore[arg-type]
