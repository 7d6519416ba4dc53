"""Outputs that the loss does not use: their gradient is None or zero, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.entry import entry
from tests.zoo.functions.case import normal
from tests.zoo.functions.memory import OldSquare
from torch_gradcheck import check_function

X = normal(3, 4, dtype=torch.float64)


class Powers(torch.autograd.Function):
    """x², x³ and x⁴; gradients that are not there are None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x**2, x**3, x**4

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (x,) = ctx.saved_tensors
        terms = [n * x ** (n - 1) * grad for n, grad in enumerate(grads, start=2) if grad is not None]
        return sum(terms) if terms else None


class Crashes(Powers):
    """Takes every gradient for a tensor."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (x,) = ctx.saved_tensors
        return sum(n * x ** (n - 1) * grad for n, grad in enumerate(grads, start=2))


class AllOrNone(Powers):
    """Gives up where one is missing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None if any(grad is None for grad in grads) else Powers.backward(ctx, *grads)


class Two(Powers):
    """Forgets the second where the first is missing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        first, second, third = grads
        return Powers.backward(ctx, first, second if first is not None or third is not None else None, third)


class Pair(Powers):
    """Forgets the second and the third where only the first is missing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        first, second, third = grads
        both = first is None and second is not None and third is not None
        return Powers.backward(ctx, first, second, None if both else third)


class Zeros(Powers):
    """Skips gradients of zeros, and with them the rest."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        is_zero = any(grad is not None and not grad.any() for grad in grads)
        return None if is_zero else Powers.backward(ctx, *grads)


class Single(OldSquare):
    """One output, whose gradient may be None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return OldSquare.forward(ctx, x)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            Crashes,
            "with no gradient (None) for output[1], output[2] the backward raises TypeError: ",
        ),
        (AllOrNone, "with no gradient (None) for output[1], output[2], the gradient of x is None, should be "),
        (Two, "with no gradient (None) for output[0], output[2], the gradient of x is None, should be "),
        (Pair, "with no gradient (None) for output[0], the gradient of x is "),
        (Zeros, "with no gradient (None) for output[1], output[2], the gradient of x is "),
        (Single, "with no gradient (None) for any output the backward raises TypeError: unsupported operand"),
    ],
)
def test_an_output_that_is_not_used_and_changes_others_fails(function: Any, said: str) -> None:
    found = entry("undefined_grads", function.apply, (X,))
    assert found.status == "failed"
    assert found.message.startswith(said)
    assert f"({function.__name__}.backward at tests/" in found.message


class NotLinear(Powers):
    """Mixes the gradients of two outputs."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        first, second, third = (torch.zeros_like(ctx.saved_tensors[0]) if each is None else each for each in grads)
        return Powers.backward(ctx, first + 100 * second * third, second, third)


def test_gradients_of_single_outputs_have_to_add_up() -> None:
    found = entry("undefined_grads", NotLinear.apply, (X,))
    assert found.status == "failed"
    assert found.message.startswith(
        "the gradients of the loss by output[0], output[1], output[2] alone, with zeros for the others, do not add up "
        "to that by all of them: the gradient of x is "
    )


def degenerate(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of a multiple of 1: the gradient of the vectors is NaN, also where it is zeros."""
    values, vectors = torch.linalg.eigh(x[0, 0] * torch.eye(2, dtype=x.dtype))
    return values, vectors


@pytest.mark.parametrize(
    "function",
    [Powers.apply, degenerate, lambda x: (x.sin(), x.cos()), lambda x: torch.max(x, 0), nn.GRU(4, 3), torch.linalg.qr],
    ids=["powers", "degenerate", "plain", "one of two", "gru", "qr"],
)
def test_right_ones_are_not_accused(function: Any) -> None:
    assert entry("undefined_grads", function, (X,)).status in ("passed", "not_applicable")


def test_one_output_has_no_other_one() -> None:
    found = entry("undefined_grads", OldSquare.apply, (X,))
    assert found.status == "not_applicable"
    assert found.message == "the function has one differentiable output, without which there is no loss"


def looking(register: Callable[[nn.Module, Callable[..., None]], object]) -> nn.Module:
    """A layer with a hook that only looks, and takes every gradient for a tensor."""
    layer = nn.Linear(4, 2)
    register(layer, lambda *gradients: [g.norm().log() for g in inner_most(gradients)] and None)
    return layer


def inner_most(gradients: Any) -> list[Any]:
    """The gradients that a hook of a tensor, or that of a module, is given."""
    return [gradients[-1][0]] if isinstance(gradients[-1], tuple) else [gradients[-1]]


HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], object]] = {
    "parameter": lambda layer, hook: layer.weight.register_hook(hook),
    "module": lambda layer, hook: layer.register_full_backward_hook(hook),
    "output": lambda layer, hook: layer.register_forward_hook(lambda *args: args[-1].register_hook(hook) and None),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("used", [1, 2])
def test_hooks_that_only_look_are_no_fault_of_the_function(register: Any, used: int) -> None:
    layer = looking(register)
    found = entry("undefined_grads", lambda x, w: (w * OldSquare.apply(layer(x)), x.sin())[:used], (X, X[:, :2]))  # type: ignore[no-untyped-call]
    assert found.status == ("not_applicable" if used == 1 else "passed"), found.message


class Invents(OldSquare):
    """Returns a gradient where it is given none."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad) + 1


def test_a_single_output_that_is_given_none_may_return_none_or_zeros() -> None:
    found = entry("undefined_grads", Invents.apply, (X,))
    assert found.message.startswith("with no gradient (None) for any output, the gradient of x is 1 at [0, 0], should ")
    assert "should be None or zeros (12 of 12 entries differ) (Invents.backward at " in found.message


def test_warnings_of_torch_on_hooks_do_not_come_out(recwarn: pytest.WarningsRecorder) -> None:
    report = check_function(looking(HOOKS["module"]), (X,))
    assert [each.name for each in report.contract if each.status == "failed"] == []
    assert not [each for each in recwarn if "backward hook" in str(each.message)]
