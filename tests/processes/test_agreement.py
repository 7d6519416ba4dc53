"""The ranks share one J: what one of them was given differently is named on all of them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import (
    InvalidRequestError,
    ProcessGroupError,
    blind_spots,
    check_closure,
    check_function,
    check_module,
)
from torch_gradcheck.errors import UnequalRanksError


def model(seed: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, generator=generator), torch.randn(5, 4, generator=generator)


class Call:
    """A check, and the ways in which that of one rank may differ."""

    def __init__(self) -> None:
        self.model, self.batch = model(), batch()
        self.factor = 1.0
        self.options: dict[str, Any] = {"mode": "keep"}

    def parameters(self) -> None:
        self.model = model(seed=1)

    def one_entry(self) -> None:
        self.model[0].bias.data[2] += 1e-3  # type: ignore[index,union-attr]

    def shape(self) -> None:
        self.model = model(width=1)

    def frozen(self) -> None:
        self.model[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]

    def buffer(self) -> None:
        self.model[1].running_mean += 1.0  # type: ignore[index,operator]

    def other_batch(self) -> None:
        self.batch = (self.batch[0] * 2, self.batch[1])

    def smaller_batch(self) -> None:
        self.batch = (self.batch[0][:4], self.batch[1][:4])

    def eps(self) -> None:
        self.options["eps"] = 1e-6

    def dtype(self) -> None:
        self.options["dtype"] = torch.float32

    def tolerance(self) -> None:
        self.options["tolerance"] = 1e-6

    def seed(self) -> None:
        self.options["seed"] = 3

    def mode(self) -> None:
        self.model[1].eval()  # type: ignore[index]

    def gradients(self) -> None:
        self.options |= {"gradients": {"0.bias": np.ones(4) * (1 + dist.get_rank())}, "include": "0.bias"}

    def loss(self) -> None:
        self.factor = 2.0

    def reference(self) -> None:
        self.options["reference"] = copy.deepcopy(self.model)

    def rounding(self) -> None:
        self.factor += 2.3e-16

    def loss_fn(self, y: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(y, target) * self.factor

    def ending(self) -> str:
        try:
            report = check_module(self.model, self.loss_fn, self.batch, group=dist.group.WORLD, **self.options)
        except ProcessGroupError as error:
            return f"{error} ({'invalid' if isinstance(error, InvalidRequestError) else 'lost'})"
        return str(report)


def check_with_difference(what: str) -> str:
    """A check in which the last rank is given something else; what it ends in."""
    call = Call()
    if dist.get_rank() == 1 or what == "gradients":
        getattr(call, what)()
    return call.ending()


@pytest.mark.parametrize(
    ("what", "named", "advice"),
    [
        ("parameters", "parameter '0.weight' is of shape (4, 3) and mean", "Broadcast the parameters"),
        ("one_entry", "parameter '0.bias'", "Broadcast the parameters"),
        ("reference", "reference= is not given on rank 0, given on rank 1", "Give every rank the same options"),
        ("shape", "(4, 3) on rank 0, of shape (1, 3) on rank 1", "Build the same model"),
        ("frozen", "the gradient of '0.bias' is on trial on rank 0, not on trial on rank 1", "Build the same model"),
        ("buffer", "buffer '1.running_mean'", "Broadcast the buffers"),
        ("other_batch", "batch[0] is of shape (5, 3) and mean", "the same batch"),
        ("smaller_batch", "batch[0] is of shape (5, 3)", "the same batch"),
        ("eps", "eps is None on rank 0, 1e-06 on rank 1", "the same options"),
        ("dtype", "different things: dtype is torch.float64 on rank 0, torch.float32 on rank 1", "the same options"),
        ("tolerance", "different things: tolerance is 1e-05 on rank 0, 1e-06 on rank 1", "the same options"),
        ("seed", "seed is 0 on rank 0, 3 on rank 1", "the same options"),
        ("mode", "the mode of '1' is train on rank 0, eval on rank 1", "train() and eval()"),
        ("gradients", "gradients['0.bias']", "the same options"),
        ("loss", "do not compute the same J (J(θ) = ", "the number of the rank"),
    ],
    ids=lambda value: value if value.isidentifier() else "",
)
def test_a_difference_is_named_on_every_rank(two_ranks: Ranks, what: str, named: str, advice: str) -> None:
    one, other = two_ranks.run(check_with_difference, what)
    assert one == other
    assert named in one
    assert advice in one
    assert one.endswith("(invalid)")


def test_rounding_of_another_processor_is_noise(two_ranks: Ranks) -> None:
    one, other = two_ranks.run(check_with_difference, "rounding")
    assert one == other
    assert "gradients right" in one


def closure_with_another_input() -> str:
    linear, x = nn.Linear(3, 1), torch.ones(2, 3) * (1 + dist.get_rank())
    nn.init.constant_(linear.weight, 0.5)
    nn.init.constant_(linear.bias, 0.1)
    try:
        check_closure(linear, lambda: linear(x).square().sum(), group=dist.group.WORLD)
    except ProcessGroupError as error:
        return str(error)
    return ""


def function_of_another_argument() -> str:
    try:
        check_function(torch.sin, (torch.ones(3) + dist.get_rank(),), group=dist.group.WORLD)
    except ProcessGroupError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("check", [closure_with_another_input, function_of_another_argument])
def test_what_a_closure_captures_and_a_function_is_given_is_compared(two_ranks: Ranks, check: Any) -> None:
    one, other = two_ranks.run(check)
    assert one == other
    assert "on rank 0" in one
    assert "on rank 1" in one


def another_call_on_rank_1(call: str) -> str:
    given = {"group": dist.group.WORLD}
    try:
        if dist.get_rank() == 0:
            check_module(model(), nn.functional.mse_loss, batch(), **given)
        elif call == "blind_spots":
            blind_spots(model(), nn.functional.mse_loss, batch(), **given)
        else:
            check_function(torch.sin, (torch.ones(3),), **given)
    except UnequalRanksError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("call", "told"), [("blind_spots", "blind_spots"), ("function", "a check of a function")])
def test_what_is_called_is_compared_first(two_ranks: Ranks, call: str, told: str) -> None:
    one, other = two_ranks.run(another_call_on_rank_1, call)
    assert one == other
    assert f"what was called is a check of a model and a loss function on rank 0, {told} on rank 1" in one


class TimesFactor(torch.autograd.Function):
    """x², whose backward is wrong by a factor on the last rank, and by rounding where that is asked for."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if dist.get_rank() == 1 and TimesFactor.factor == 0:
            raise RuntimeError("no such kernel on this machine")
        result: Tensor = 2 * x * gradient * (TimesFactor.factor if dist.get_rank() == 1 else 1.0)
        return result


def with_backward_of_ranks(factor: float, **options: Any) -> str:
    """A check of a model whose backward differs by a factor on rank 1; what it ends in."""
    TimesFactor.factor = factor
    linear, x = model()[0], batch()[0]  # type: ignore[index]
    try:
        check = check_closure(linear, lambda: TimesFactor.apply(linear(x)).mean(), group=dist.group.WORLD, **options)
    except (UnequalRanksError, RuntimeError) as error:
        return str(error)
    return str(check)


@pytest.mark.parametrize("options", [{}, {"method": "projected"}], ids=["exact", "projected"])
def test_a_backward_that_is_wrong_on_another_rank_is_told(two_ranks: Ranks, options: dict[str, Any]) -> None:
    one, other = [
        told.split("(")[0] for told in two_ranks.run(functools.partial(with_backward_of_ranks, 3.0, **options))
    ]
    assert one == other
    assert "the ranks do not compute the same gradient: that of the parameter weight on rank 1 differs" in one
    right, _ = two_ranks.run(functools.partial(with_backward_of_ranks, 1.0, **options))
    assert "gradients right" in right


def test_a_backward_that_is_rounded_otherwise_on_another_rank_is_the_same(two_ranks: Ranks) -> None:
    one, other = two_ranks.run(with_backward_of_ranks, 1.0 + 2.3e-16)
    assert one == other
    assert "gradients right: 2 of 2" in one


def test_an_exception_in_the_backward_of_another_rank_is_told(two_ranks: Ranks) -> None:
    assert two_ranks.run(with_backward_of_ranks, 0.0) == ["no such kernel on this machine"] * 2
