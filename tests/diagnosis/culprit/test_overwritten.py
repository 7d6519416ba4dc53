"""What is kept for the backward and then overwritten through `.data`: who writes is named, and who keeps it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.culprit.test_functions import Module, accused, between, checked
from torch_gradcheck import check_module
from torch_gradcheck.diagnosis.culprit import overwritten


class Exp(torch.autograd.Function):
    """Keeps its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return grad * y


class KeptInAnAttribute(Exp):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.y = x.exp()
        return ctx.y.view_as(ctx.y)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.y  # type: ignore[no-any-return]


class Clamp(torch.autograd.Function):
    """max(x − 0.3, 0), in place past autograd or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wrong: bool) -> Tensor:
        y = x.data.sub_(0.3).clamp_(min=0) if wrong else (x - 0.3).clamp(min=0)
        ctx.save_for_backward(y > 0)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (active,) = ctx.saved_tensors
        return grad * active, None


class ScalesInItsBackward(torch.autograd.Function):
    """x; its backward is right, and writes to another one's tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor, wrong: bool) -> Tensor:
        ctx.other, ctx.wrong = other.detach(), wrong
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        if ctx.wrong:
            ctx.other.data.mul_(0.5)
        return grad, None, None


def halved(x: Tensor, wrong: bool) -> Tensor:
    """tanh(x); x is halved past autograd afterwards."""
    y = torch.tanh(x)
    if wrong:
        x.data.mul_(0.5)
    return y


def over_a_function(wrong: bool) -> nn.Module:
    return between(Module(lambda self, x: Exp.apply(x)), Module(lambda self, x: halved(x, wrong)))


def over_torchs_own(wrong: bool) -> nn.Module:
    return between(nn.Sigmoid(), Module(lambda self, x: halved(x, wrong)))


def over_an_attribute(wrong: bool) -> nn.Module:
    return between(Module(lambda self, x: KeptInAnAttribute.apply(x)), Module(lambda self, x: halved(x, wrong)))


def in_one_module(wrong: bool) -> nn.Module:
    return between(Module(lambda self, x: halved(Exp.apply(x), wrong)))


def by_a_function(wrong: bool) -> nn.Module:
    return between(nn.Sigmoid(), Module(lambda self, x: Clamp.apply(x, wrong)))


def in_a_backward(wrong: bool) -> nn.Module:
    def forward(self: Module, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        return ScalesInItsBackward.apply(y, y, wrong)  # type: ignore[no-any-return]

    return between(Module(forward))


CASES: dict[str, tuple[Callable[[bool], nn.Module], str, str]] = {
    "of a Function": (over_a_function, "2", "it writes past autograd, as .data does, to a tensor that autograd.F"),
    "of a module of torch": (over_torchs_own, "2", "to a tensor that 1 (Sigmoid) keeps for its backward"),
    "of an attribute of a context": (over_an_attribute, "2", "that autograd.Function KeptInAnAttribute in 1 ("),
    "in the same module": (in_one_module, "1", "that autograd.Function Exp in 1 (Module) keeps for its backward"),
    "by a Function": (by_a_function, "2", "autograd.Function Clamp writes past autograd, as .data does, to a tensor"),
    "in the backward of a Function": (in_a_backward, "1", "backward of 1 (Module): autograd.Function ScalesInItsB"),
}  # fmt: skip


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize(("build", "name", "words"), CASES.values(), ids=CASES)
def test_who_writes_is_named_and_nothing_beside_it(build: Callable[[bool], nn.Module], name: str, words: str) -> None:
    report = checked(build(True))
    assert report.culprit == name
    (note,) = accused(report)
    assert words in note
    assert note.endswith(" is right")
    assert checked(build(False)).passed


def test_what_is_overwritten_and_does_no_harm_is_not_blamed() -> None:
    """tanh keeps its output; the input of the add is overwritten, which no backward needs."""

    def forward(self: Module, x: Tensor) -> Tensor:
        y = x + 1.0
        z = Exp.apply(y) * 1.0
        y.data.mul_(0.5)
        return z + 0.5 * z.detach()  # type: ignore[no-any-return]

    report = checked(between(Module(forward)))
    assert report.culprit == "1"
    assert "writes past autograd" not in " ".join(report.notes)


def test_by_the_loss_function() -> None:
    model = between(Module(lambda self, x: Exp.apply(x)))[:2]

    def loss(y: Tensor, _: Tensor) -> Tensor:
        J = y.square().mean()
        y.data.mul_(0.5)
        return J

    report = check_module(model, loss, (torch.linspace(-1, 1, 15).view(5, 3), torch.zeros(1)))
    assert report.culprit == "loss_fn"
    assert "forward of the loss function or closure at" in accused(report)[0]


def test_above_the_limit_of_memory_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overwritten, "MEMORY_LIMIT", 0)
    report = checked(over_a_function(True))
    assert "writes past autograd" not in " ".join(report.notes)
