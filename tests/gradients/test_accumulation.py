from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.torch_internals.autograd import current_backward


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def test_scalars_and_cotangents() -> None:
    w, unused = leaf(2.0, 3.0), leaf(1.0)
    assert [None if g is None else g.tolist() for g in gradients_of([(w * w).sum()], [w, unused])] == [[4, 6], None]
    (gradient,) = gradients_of([w * w, w], [w], [torch.tensor([1.0, 0.0]), torch.tensor([10.0, 20.0])])
    assert gradient is not None
    assert gradient.tolist() == [14, 20]


def test_nothing_to_go_back_from_or_to() -> None:
    w, frozen = leaf(1.0), torch.ones(1)
    assert gradients_of([], [w]) == [None]
    assert gradients_of([w.sum()], [frozen]) == [None]


def test_an_output_that_is_a_leaf() -> None:
    w = leaf(1.0)
    w.grad = torch.tensor([5.0])
    (gradient,) = gradients_of([w], [w], [torch.tensor([3.0])])
    assert gradient is not None
    assert gradient.tolist() == [3.0]
    assert w.grad.tolist() == [5.0]


class Raising(torch.autograd.Function):
    """Goes back through another graph, and raises then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inside: list[Tensor]) -> Tensor:
        (ctx.inside,) = inside
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with torch.enable_grad():
            ctx.inside.sin().sum().backward()
        raise ValueError("no gradient")


def test_all_is_as_it_was_after_an_exception() -> None:
    w, inside, other, backward = leaf(1.0), leaf(2.0), leaf(3.0), current_backward()
    held = torch.tensor([7.0])
    w.grad, inside.grad, other.grad = held, held, held
    with pytest.raises(ValueError, match="no gradient"):
        gradients_of([(Raising.apply(w, [inside]) * other).sum()], [w])  # type: ignore[no-untyped-call]
    assert [each.grad is held for each in (w, inside, other)] == [True] * 3
    assert held.tolist() == [7.0]
    assert current_backward() is backward


def test_a_backward_of_another_thread_goes_its_own_way() -> None:
    """A training loop beside a check keeps what it accumulates."""
    w, theirs = leaf(1.0), leaf(2.0)
    theirs.grad = torch.tensor([1.0])

    def train(_: Tensor) -> None:
        thread = threading.Thread(target=lambda: (theirs * 3).sum().backward())
        thread.start()
        thread.join()

    w.register_hook(train)  # type: ignore[no-untyped-call]
    gradients_of([w.sum()], [w])
    assert theirs.grad.tolist() == [4.0]
