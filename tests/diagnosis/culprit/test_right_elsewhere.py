"""A backward that computed the gradient of something else is told by what that is, and a near relation is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.losses import squared_error
from torch_gradcheck import Report, check_module

Backward = Callable[..., tuple[Tensor | None, ...]]


def function(forward: Callable[..., Any], backward: Backward) -> type[torch.autograd.Function]:
    """A Function of x and another input, with a backward(gradients, x, other)."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, other: Tensor) -> Any:
            ctx.save_for_backward(x, other)
            return forward(x, other)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(*grads, *ctx.saved_tensors)

    return ByHand


def gradient(of: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """The right gradient of `of` for its one input."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(of(leaf), leaf, g)
    return found


class Layer(nn.Module):
    """A linear layer, then a Function of what it gives and `other`; of two outputs the sum."""

    def __init__(self, by_hand: type[torch.autograd.Function], other: Tensor) -> None:
        super().__init__()
        self.front, self.by_hand = nn.Linear(3, 4), by_hand
        self.register_buffer("other", other)

    def forward(self, x: Tensor) -> Tensor:
        y = self.by_hand.apply(self.front(x), self.other)
        both: Tensor = torch.tanh(y[0]) + y[1] if isinstance(y, tuple) else torch.tanh(y)
        return both[:, :2]


def check(forward: Callable[..., Any], backward: Backward, other: Tensor) -> Report:
    torch.manual_seed(0)
    model = Layer(function(forward, backward), other)
    return check_module(model, squared_error, (torch.randn(5, 3), torch.randn(5, 2)))


ROW = torch.tensor([0.7, -1.2, 0.4, 2.0])
MASK = torch.tensor([True, True, False, True]).expand(5, 4)
SCALED_SOFTMAX = lambda x, w: (x * w).softmax(-1)  # noqa: E731
MASKED_SOFTMAX = lambda x, m: x.masked_fill(~m, -1e9).softmax(-1)  # noqa: E731
PAIR = lambda x, w: (x.sin().cumsum(1), (x * w).cos().cumsum(1))  # noqa: E731


def first_only(g: Tensor, h: Tensor, x: Tensor, w: Tensor, share: float = 0.0) -> tuple[Tensor | None, ...]:
    first = gradient(lambda x: x.sin().cumsum(1), x, g)
    return first + share * gradient(lambda x: (x * w).cos().cumsum(1), x, h), None


TOLD = {
    "another output": (PAIR, first_only, ROW, "lacks what arrives for output 1, and is right but for that"),
    "a factor": (
        SCALED_SOFTMAX,
        lambda g, x, w: (gradient(lambda x: (x * w).softmax(-1), x, g) / w, None),
        ROW,
        None,
    ),
    "a scale": (
        SCALED_SOFTMAX,
        lambda g, x, w: (gradient(lambda x: x.softmax(-1), x, g), None),
        ROW,
        "is right for an input other of 1 in every entry: the backward leaves that out",
    ),
    "a bias": (
        lambda x, b: F.gelu(x + b).cumsum(-1),
        lambda g, x, b: (gradient(lambda x: F.gelu(x).cumsum(-1), x, g), None),
        ROW,
        "is right for an input other of 0 in every entry: the backward leaves that out",
    ),
    "a mask": (
        MASKED_SOFTMAX,
        lambda g, x, m: (gradient(lambda x: x.softmax(-1), x, g), None),
        MASK,
        "is right for an input other of True in every entry: the backward leaves that out",
    ),
    "the transpose": (
        lambda x, _: x.cumsum(-1),
        lambda g, x, _: (g.cumsum(-1), None),
        ROW,
        "is what the forward makes of the upstream gradient: the backward lacks the transpose",
    ),
    "the transpose of what arrives": (
        lambda x, w: w @ x.T,
        lambda g, x, w: (g @ w, None),
        torch.randn(5, 4, generator=torch.Generator().manual_seed(2)),
        "is right for the upstream gradient transposed in its last two axes",
    ),
}
"""The forward, the backward, the other input, and the words; None: others say it."""


class Table(nn.Module):
    """Looks up rows of a table by `index` and gives their sums in each bag."""

    def __init__(self, backward: Backward, index: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2))
        self.by_hand = function(lambda w, i: w[i].sum(1), backward)
        self.index = index

    def forward(self, shift: Tensor) -> Tensor:
        y: Tensor = self.by_hand.apply(self.weight, self.index)
        return torch.tanh(y + shift)


def put(g: Tensor, w: Tensor, index: Tensor, flipped: bool = False, scale: float = 1.0) -> tuple[Tensor, None]:
    """The gradient of the table by assignment, in which a later use of a row takes the place of earlier ones."""
    uses = g[:, None].expand(*index.shape, 2).reshape(-1, 2) * scale
    order = range(len(uses) - 1, -1, -1) if flipped else range(len(uses))
    found = torch.zeros_like(w)
    for k in order:
        found[index.flatten()[k]] = uses[k]
    return found, None


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        pytest.param(put, "counts only the last use of each row by input other", id="last"),
        pytest.param(partial(put, flipped=True), "counts only the first use of each row by input other", id="first"),
        pytest.param(partial(put, scale=1.1), "no simple relation", id="last, scaled"),
    ],
)
def test_uses_of_a_row_that_are_not_added(backward: Backward, words: str) -> None:
    torch.manual_seed(0)
    model = Table(backward, torch.tensor([[0, 3, 1], [1, 3, 3], [4, 0, 0], [1, 1, 4]]))
    row = check_module(model, squared_error, (torch.randn(4, 2), torch.randn(4, 2)))["weight"]
    assert row.diagnosis is not None
    assert words in row.diagnosis.message


def test_places_and_the_reason_are_told_together() -> None:
    torch.manual_seed(0)
    model = Table(put, torch.tensor([[0, 5, 1], [2, 3, 3]]))
    row = check_module(model, squared_error, (torch.randn(2, 2), torch.randn(2, 2)))["weight"]
    assert row.diagnosis is not None
    assert row.diagnosis.kind == "partial"
    assert row.diagnosis.message.startswith("dθ is right except in row 3 of 6, where it is 0.5 × the right one")
    assert ": the part of dθ for the input x of autograd.Function ByHand counts only the last" in row.diagnosis.message


NOT_TOLD = {
    "half of another output": (PAIR, lambda g, h, x, w: first_only(g, h, x, w, share=0.5), ROW),
    "nearly no scale": (
        SCALED_SOFTMAX,
        lambda g, x, w: (gradient(lambda x: (x * (1 + 1e-4 * w)).softmax(-1), x, g), None),
        ROW,
    ),
    "another bias": (
        lambda x, b: F.gelu(x + b).cumsum(-1),
        lambda g, x, b: (gradient(lambda x: F.gelu(x - b).cumsum(-1), x, g), None),
        ROW,
    ),
    "cumulative products": (
        lambda x, _: x.cumsum(-1),
        lambda g, x, _: (g.cumsum(-1) + 1e-4 * g.cumsum(0), None),
        ROW,
    ),
}


@pytest.mark.parametrize("case", TOLD.values(), ids=TOLD)
def test_what_was_left_out_is_told(case: tuple[Any, ...]) -> None:
    *given, words = case
    diagnosis = check(*given)["front.weight"].diagnosis
    assert diagnosis is not None
    if words is None:
        assert "is right for" not in diagnosis.message
    else:
        assert (diagnosis.kind, words in diagnosis.message) == ("propagated", True), diagnosis.message


@pytest.mark.parametrize("case", NOT_TOLD.values(), ids=NOT_TOLD)
def test_a_near_relation_is_not(case: tuple[Any, ...]) -> None:
    diagnosis = check(*case)["front.weight"].diagnosis
    assert diagnosis is not None
    assert "right for" not in diagnosis.message
    assert "lacks" not in diagnosis.message
