"""A custom autograd.Function is named wherever it stands, and nothing beside it; its right twin is not accused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from torch_gradcheck import Report, check_module

X, T = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(1, -1, 10).view(5, 2)


def function(backward: Callable[..., Any], forward: Callable[..., Tensor] = torch.sin) -> Any:
    """A Function `Odd` of x and, where `forward` takes one, a weight; the context keeps both for `backward`."""

    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            ctx.save_for_backward(*inputs)
            ctx.contiguous = inputs[0].is_contiguous()
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    return Odd


def sine(wrong: bool, factor: float = 1.3) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (factor if wrong else 1.0) * grad * torch.cos(x)

    return function(backward)


class Module(nn.Module):
    """A forward, and modules and parameters that it uses."""

    def __init__(self, forward: Callable[..., Tensor], **held: Any) -> None:
        super().__init__()
        self.function = forward
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def between(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 3), *middle, nn.Linear(3, 2))


def behind_identity(wrong: bool) -> nn.Module:
    odd = sine(wrong)
    return between(Module(lambda self, x: self.i(odd.apply(self.i(x))), i=nn.Identity()))


def apply_stored(wrong: bool) -> nn.Module:
    stored = sine(wrong).apply
    return between(Module(lambda self, x: self.stored(x), stored=stored))


def under_vmap(wrong: bool) -> nn.Module:
    class Odd(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return torch.sin(x)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            return (1.3 if wrong else 1.0) * grad * torch.cos(x)

    return between(Module(lambda self, x: torch.vmap(Odd.apply)(x)))


def product(wrong: bool) -> Any:
    """x Wᵀ; half of W's gradient is lost where x needs none."""

    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            return grad @ weight, grad.T @ x
        return None, (0.5 if wrong else 1.0) * grad.T @ x

    return function(backward, lambda x, weight: x @ weight.T)


def of_the_batch(front: nn.Module | None, inside: bool = False) -> Callable[[bool], nn.Module]:
    """A layer whose input needs no gradient, behind a module that has none to give."""

    def build(wrong: bool) -> nn.Module:
        torch.manual_seed(7)
        odd = product(wrong)
        identity = front if inside and front is not None else nn.Identity()
        layer = Module(
            lambda self, x: odd.apply(self.i(x) if inside else x, self.weight),
            weight=nn.Parameter(torch.randn(3, 3)),
            i=identity,
        )
        modules = [layer] if inside or front is None else [front, layer]
        return nn.Sequential(*modules, nn.Tanh(), nn.Linear(3, 2))

    return build


def frozen() -> nn.Module:
    return nn.Linear(3, 3).requires_grad_(False)


def reading_memory(ctx: Any, grad: Tensor) -> Tensor:
    """Takes the gradient for contiguous, as a kernel may."""
    return grad.as_strided(grad.shape, (grad.shape[1], 1)) if 0 not in grad.stride() else 0.5 * grad


def transposed(wrong: bool) -> nn.Module:
    odd = function(reading_memory if wrong else lambda ctx, grad: grad, torch.clone)
    tail = Module(lambda self, x: (x.T * self.weight).sin(), weight=nn.Parameter(torch.linspace(-1, 1, 15).view(3, 5)))
    return nn.Sequential(nn.Linear(3, 3), Module(lambda self, x: odd.apply(x)), tail)


def expanded(wrong: bool) -> nn.Module:
    odd = function(reading_memory if wrong else lambda ctx, grad: grad, torch.clone)
    return nn.Sequential(nn.Linear(3, 3), Module(lambda self, x: odd.apply(x)), Module(lambda self, x: x.sum(1)))


def of_an_expanded_input(wrong: bool) -> nn.Module:
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (0.5 if wrong and not ctx.contiguous else 1.0) * grad * torch.cos(x)

    odd = function(backward)
    return between(Module(lambda self, x: odd.apply(x[:, :1].expand(5, 3))))


def refusing_contiguous(wrong: bool) -> nn.Module:
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        assert not grad.is_contiguous(), "wants the gradient of a sum"
        return (1.3 if wrong else 1.0) * grad

    odd = function(backward, torch.clone)
    return nn.Sequential(nn.Linear(3, 3), Module(lambda self, x: odd.apply(x)), Module(lambda self, x: x.sum(1)))


PLACES: dict[str, tuple[Callable[[bool], nn.Module], str]] = {
    "behind and before nn.Identity": (behind_identity, "1"),
    "apply stored in __init__": (apply_stored, "1"),
    "under vmap": (under_vmap, "1"),
    "input needs no gradient": (of_the_batch(None), "0"),
    "input needs no gradient, behind nn.Identity": (of_the_batch(nn.Identity()), "1"),
    "input needs no gradient, behind nn.Flatten": (of_the_batch(nn.Flatten()), "1"),
    "input needs no gradient, behind a frozen layer": (of_the_batch(frozen()), "1"),
    "input needs no gradient, behind nn.Identity inside": (of_the_batch(nn.Identity(), inside=True), "0"),
    "gradient transposed": (transposed, "1"),
    "gradient expanded": (expanded, "1"),
    "gradient must be expanded": (refusing_contiguous, "1"),
    "input expanded": (of_an_expanded_input, "1"),
}


def checked(model: nn.Module) -> Report:
    loss = squared_error if model(X).shape == T.shape else lambda y, t: squared_error(y, torch.ones_like(y))
    return check_module(model, loss, (X, T))


def accused(report: Report) -> list[str]:
    """The notes that say where a mistake is."""
    return [note for note in report.notes if re.match("(besides, )?the mistake is in", note)]


@pytest.mark.slow_but_for(6)
@pytest.mark.parametrize(("build", "name"), PLACES.values(), ids=PLACES)
def test_the_function_is_named_and_nothing_beside_it(build: Callable[[bool], nn.Module], name: str) -> None:
    report = checked(build(True))
    assert report.culprit == name
    (note,) = accused(report)
    assert "autograd.Function Odd gives a wrong gradient" in note
    assert checked(build(False)).passed


# Shares of an error -----------------------------------------------------------------------------------------------


def cancelling(model: Module, x: Tensor) -> Tensor:
    """Two wrong calls whose errors all but cancel."""
    small: Tensor = model.much(x) - model.less(1.001 * x) + 0.1 * x
    return small


def growing(model: Module, x: Tensor) -> Tensor:
    """A recurrence: each of five calls has a large part in the error."""
    states = [model.much(x)]
    for _ in range(4):
        states.append(model.much(x + states[-1]))
    return states[-1]


@pytest.mark.parametrize("combined", [cancelling, growing])
def test_a_share_is_one_of_all_parts_of_the_error(combined: Callable[..., Tensor]) -> None:
    much, less = sine(True, 1.5), sine(True, 1.499)
    report = checked(between(Module(combined, much=much.apply, less=less.apply)))
    assert report.culprit == "1"
    shares = [float(share) for share in re.findall(r"(-?[\d.]+)%", " ".join(accused(report)))]
    assert len(shares) == 1
    assert 50 < shares[0] <= 100


def test_what_cancels_is_counted_by_its_size() -> None:
    much, less = sine(True, 1.5), sine(True, 1.499)
    (note,) = accused(checked(between(Module(cancelling, much=much.apply, less=less.apply))))
    assert "it accounts for 100.0% of the errors that add up to that of 0." in note
    assert note.endswith(", signs aside")


@pytest.mark.parametrize(("factor", "words"), [(1.3, "gives a wrong gradient for"), (1.0, "")], ids=["wrong", "right"])
def test_one_that_writes_to_its_gradient_is_told_to_be_wrong_only_where_it_is(factor: float, words: str) -> None:
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad.mul_(2) * torch.cos(x) * factor / 2

    odd = function(backward)
    report = check_module(between(Module(lambda _, x: x + odd.apply(x))), squared_error, (X, T))
    (note,) = [note for note in report.notes if "writes to the gradient it is given" in note]
    assert ("gives a wrong gradient for" in note) == bool(words)
