"""The whole text of real reports, held by golden files: from a model to what is printed.

After a change that is meant, this writes them anew; read the difference before you commit it:

    TORCH_GRADCHECK_REWRITE_GOLDEN=1 pytest tests/test_golden_reports.py

Seconds, numbers of evaluations, steps, error bars and figures below 1e-5, which are rounding or follow from it, are
masked: they differ from processor to processor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_closure, check_function, check_module

GOLDEN = Path(__file__).parent / "golden"
REWRITE = os.environ.get("TORCH_GRADCHECK_REWRITE_GOLDEN") == "1"


def rows(count: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers between −1 and 1, the same on every processor; those of `randn` differ in the last digits."""
    return ((torch.arange(count * width) * 37 % 101 - 50) / 50).reshape(count, width).to(dtype)


def filled(model: nn.Module) -> nn.Module:
    """The model with such numbers for weights, other ones in each layer."""
    with torch.no_grad():
        for layer, parameter in enumerate(model.parameters()):
            parameter.copy_(rows(layer + 1, parameter.numel())[-1].view_as(parameter) / 2)
    return model


class SwishFunction(torch.autograd.Function):
    """x·σ(x), without the second term of its slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SwishFunction.apply(x)


def wrong_backward() -> Report:
    """A culprit inside, and a mistake in all parameters upstream of it."""
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Swish(), nn.Linear(5, 3)))
    return check_module(model, nn.CrossEntropyLoss(), (rows(6, 4), torch.arange(6) % 3))


def gradient_penalty_in_a_closure() -> Report:
    """All right: a second derivative inside, a tied and a frozen parameter."""
    critic = filled(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1)))
    critic[2].weight = critic[0].weight
    critic[3].bias.requires_grad_(False)
    points = rows(5, 3).requires_grad_()

    def closure() -> Tensor:
        scores = critic(points)
        (slope,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
        return scores.square().mean() + (slope.norm(dim=1) - 1).square().mean()

    return check_closure(critic, closure)


def step_that_left_wrong_gradients() -> Report:
    """What a loop left in `.grad`: a factor in one tensor, nothing in another."""
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))).double()
    x, y = rows(6, 4, torch.float64), rows(6, 2, torch.float64)
    nn.functional.mse_loss(model(x), y).backward()
    assert model[2].weight.grad is not None
    model[2].weight.grad *= 2
    model[2].bias.grad = None
    return check_module(model, nn.MSELoss(), (x, y), gradients="grad")


def wrong_column_projected() -> Report:
    """Random directions, and a picture of where a tensor is wrong."""
    model = filled(nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4)))

    def without_one_column(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, 5] = 0
        return gradient

    model[0].weight.register_hook(without_one_column)
    return check_module(model, nn.CrossEntropyLoss(), (rows(8, 12), torch.arange(8) % 4), method="projected")


class Rectified(nn.Module):
    """ReLUs exactly at 0 and far below, and a parameter that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = filled(nn.Linear(3, 4))
        self.at_zero, self.dead = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.full((4,), -2.0))
        self.spare = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + self.at_zero.relu()) + self.dead.relu()


def neither_right_nor_wrong() -> Report:
    """Kinks, flat and unused parameters."""
    return check_module(Rectified(), lambda y: y.square().mean(), rows(7, 3))


class GateFunction(torch.autograd.Function):
    """x·σ(gate), the gate broadcast over the rows: its gradients are right, and little else is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        sigma = torch.sigmoid(gate)
        ctx.save_for_backward(x, sigma)
        return x * sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, sigma = ctx.saved_tensors
        for_gate = grad * x * sigma * (1 - sigma)
        return grad.mul_(sigma), for_gate


def function_with_a_broken_contract() -> Report:
    """A function that is right as long as nobody looks closer."""
    return check_function(GateFunction.apply, (rows(3, 4), rows(1, 4)[0]))


class SquashFunction(torch.autograd.Function):
    """tanh(x), with its slope kept as an intermediate: right as often as nobody differentiates its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(1 - y**2)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SquashFunction.apply(x)


def wrong_double_backward() -> Report:
    """Of second order, an intermediate that is taken for a constant."""
    model = filled(nn.Sequential(nn.Linear(4, 5), Squash(), nn.Linear(5, 3)))
    return check_module(model, nn.CrossEntropyLoss(), (rows(6, 4), torch.arange(6) % 3), order=2)


def cubes(a: Tensor, b: Tensor) -> Tensor:
    """The plain reference of the kernels below: products only, which every processor rounds alike."""
    return a * a * b


def kernel_of_cubes(spoiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A kernel that computes them in float32; the gradient of a is spoiled."""

    class Cubes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(a, b)
            return cubes(a.float(), b.float()).to(a.dtype)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            a, b = [each.float() for each in ctx.saved_tensors]
            for_a = spoiled(2 * a * b * grad.float())
            return for_a.to(grad.dtype), (a * a * grad.float()).to(grad.dtype)

    return Cubes.apply  # type: ignore[no-any-return]


def spread(ratio: float) -> Tensor:
    """20 × 44 numbers between 1 and 2, all different before they are rounded."""
    return (1 + torch.arange(880, dtype=torch.float64) * ratio % 1).reshape(20, 44).bfloat16()


def beside_cubes(spoiled: Callable[[Tensor], Tensor], reference: Callable[..., Tensor] = cubes) -> Report:
    inputs = spread(0.6180339887), -spread(0.7548776662)
    return check_function(kernel_of_cubes(spoiled), inputs, reference=reference)


def right_kernel() -> Report:
    """As right as its precision allows."""
    return beside_cubes(lambda gradient: gradient)


def kernel_one_percent_off() -> Report:
    """A factor that shows in no single entry."""
    return beside_cubes(lambda gradient: 1.01 * gradient)


def kernel_without_its_tail() -> Report:
    """Columns after the last full block that the backward does not write."""
    return beside_cubes(lambda gradient: gradient * (torch.arange(44) < 32))


class CubesFunction(torch.autograd.Function):
    """a·a·b, the slope of a forgotten a factor 2."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return cubes(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return grad * a * b, grad * a * a


def kernel_beside_a_wrong_reference() -> Report:
    """What is wrong with the reference is said first."""
    return beside_cubes(lambda gradient: gradient, CubesFunction.apply)


CHECKS: dict[str, Callable[[], Report]] = {
    check.__name__: check
    for check in (
        wrong_backward,
        gradient_penalty_in_a_closure,
        step_that_left_wrong_gradients,
        wrong_column_projected,
        neither_right_nor_wrong,
        function_with_a_broken_contract,
        wrong_double_backward,
        right_kernel,
        kernel_one_percent_off,
        kernel_without_its_tail,
        kernel_beside_a_wrong_reference,
    )
}


MASKS = (
    (r"\b[\d,.]+ s$", "# s"),
    (r"\b[\d,]+ evaluations", "# evaluations"),
    (r"\b\d+ runs", "# runs"),
    (r"\.py:\d+\b", ".py:#"),
    (r"eps = .* ·", "eps = # ·"),
    (r" +[\d.]+ +(?:[\d.]+%|–)(?= +\d+/\d+$)", "  # #"),
    (r"\b[\d.e+]+(?= times what rounding)", "#"),
    (r"\(0\.00\d+\)", "(#)"),
    (r"(?: +-?\d\.\d+e-\d\d){1,2}(?= +\de-0[1-5]\b)", lambda figures: re.sub(r"[-\d]", "#", figures[0])),
    (r"(?<![.\d])\de[-+]\d\d\b", "#e-##"),
    (r"(?<= )(?:\d\.\de-(?:0[6-9]|[1-9]\d)| {6}0)(?= )", "#.#e-##"),
)
"""Patterns of what differs, and what stands for it.

Of a candidate they are multiples of an error bar, and the bars of its sums. The last three are figures known to a large
error bar only, error bars, which have one digit, and figures below 1e-5 or 0 in their columns.
"""


def masked(printed: str) -> str:
    """The text without what differs from processor to processor; the columns of the table stay where they are."""
    for varies, constant in MASKS:
        printed = re.sub(varies, constant, printed, flags=re.MULTILINE)
    return printed


@pytest.mark.parametrize("name", CHECKS)
def test_the_report_is_the_golden_one(name: str) -> None:
    torch.manual_seed(0)
    golden = GOLDEN / f"{name}.txt"
    printed = masked(CHECKS[name]().text(width=80)) + "\n"
    if REWRITE:
        golden.write_text(printed, encoding="utf-8")
    assert printed == golden.read_text(encoding="utf-8")


def test_every_golden_file_has_its_check() -> None:
    assert {golden.stem for golden in GOLDEN.iterdir()} == set(CHECKS)
