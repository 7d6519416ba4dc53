"""Promise: a check beside a reference changes nothing of the caller's, whatever is raised and wherever Ctrl-C comes.

The candidate writes to its arguments and parameters, counts its calls, and keeps the last of them.
"""

from __future__ import annotations

import pickle
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from tests.zoo.interruptions import exception_of, interrupted_at, sites_of
from tests.zoo.snapshot import Snapshot
from torch_gradcheck import Report, check_function, check_module

ctrl_c = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="Ctrl-C does not raise in this process"
)


@pytest.fixture(autouse=True)
def put_back(no_collector: None) -> Iterator[None]:
    """What a failing test leaves in the process must not reach other tests."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)


class UserError(Exception):
    """What the user's code raises."""


class Countdown:
    """Raises at the k-th call, and counts them."""

    def __init__(self, k: int = 0) -> None:
        self.k, self.calls = k, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.k:
            raise UserError


class Overwriting(Function):
    """w · x with noise that is drawn; writes over its input past autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, forward: Countdown, backward: Countdown) -> Tensor:
        ctx.save_for_backward(x.clone(), w.clone())
        ctx.backward_counts = backward
        result = x * w * (1 + 0 * torch.rand(()).item() * np.random.rand() * random.random())
        x.data.mul_(2)
        w.data.add_(1)
        forward()
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        ctx.backward_counts()
        return g * w, (g * x).sum(0), None, None


class Side(nn.Module):
    """A candidate or a reference, with buffers, dropout that is off, and a `.grad` of before."""

    def __init__(self, forward: Countdown, backward: Countdown, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 5).to(dtype))
        self.norm = nn.BatchNorm1d(5).to(dtype)
        self.weight.grad = torch.ones(5, dtype=dtype)
        self.counts = forward, backward
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.norm(Overwriting.apply(x, self.weight, *self.counts))
        return self.last


Sides = tuple[Countdown, Countdown]


def module_check(own: Sides, other: Sides) -> tuple[dict[str, Any], Callable[[], Report]]:
    """What is watched, and the check."""
    candidate, reference = Side(*own, torch.bfloat16), Side(*other, torch.float32)
    candidate.norm.eval()
    x = torch.linspace(-2, 2, 35).view(7, 5).bfloat16().requires_grad_()
    x.grad = torch.ones(7, 5, dtype=torch.bfloat16)
    loss_fn = lambda y: y.float().square().mean()  # noqa: E731
    watched = {"candidate": candidate, "reference": reference, "x": x}
    return watched, lambda: check_module(candidate, loss_fn, x, reference=reference, mode="train")


def function_check(own: Sides, other: Sides) -> tuple[dict[str, Any], Callable[[], Report]]:
    x = torch.linspace(-2, 2, 35).view(5, 7).bfloat16().t().requires_grad_()
    w = torch.linspace(0.5, 1.5, 10).bfloat16()[::2].requires_grad_()
    w.grad = torch.ones(5, dtype=torch.bfloat16)
    functions = [lambda x, w, both=both: Overwriting.apply(x, w, *both) for both in (own, other)]
    watched = {"x": x, "w": w, "functions": functions}
    return watched, lambda: check_function(functions[0], (x, w), reference=functions[1])


CHECKS = {"module": module_check, "function": function_check}
every_check = pytest.mark.parametrize("kind", CHECKS)


def counts() -> Sides:
    return Countdown(), Countdown()


@every_check
def test_after_a_check(kind: str) -> None:
    torch.manual_seed(3)
    watched, check = CHECKS[kind](counts(), counts())
    before = Snapshot(**watched)
    report = check()
    assert before.changes() == []
    assert not report.mismatches, report


@pytest.mark.slow_but_for(1)
@every_check
def test_after_a_check_under_autocast(kind: str) -> None:
    watched, check = CHECKS[kind](counts(), counts())
    with torch.autocast("cpu", torch.bfloat16):
        before = Snapshot(**watched)
        check()
        assert before.changes() == []
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize("k", [1, 20], ids=["first call", "call of the contract"])
@pytest.mark.parametrize("step", ["forward", "backward"])
@pytest.mark.parametrize("side", ["candidate", "reference"])
@every_check
def test_after_an_exception(kind: str, side: str, step: str, k: int) -> None:
    raising = (Countdown(k), Countdown()) if step == "forward" else (Countdown(), Countdown(k))
    watched, check = CHECKS[kind](*((raising, counts()) if side == "candidate" else (counts(), raising)))
    before = Snapshot(**watched)
    caught = exception_of(check)
    assert before.changes() == []
    assert caught is None or isinstance(caught, UserError)
    if k == 1:
        assert caught is not None
    if k == 20 and kind == "function" and side == "candidate":
        assert caught is None, "in the contract it belongs to its entry"


@ctrl_c
@pytest.mark.slow
@pytest.mark.parametrize("points", [3])
@every_check
def test_after_ctrl_c(kind: str, points: int) -> None:
    """A sample, drawn with a seed, of the first and last passages of every site that the check comes through."""
    CHECKS[kind](counts(), counts())[1]()
    passed = sites_of(CHECKS[kind](counts(), counts())[1])
    every = sorted((site, passage) for site, last in passed.items() for passage in {1, last})
    lost = 0
    for site, passage in random.Random(points).sample(every, points):
        watched, check = CHECKS[kind](counts(), counts())
        before = Snapshot(**watched)
        caught = interrupted_at(site, passage, check)
        assert before.changes() == [], (site, passage)
        assert caught is None or isinstance(caught, KeyboardInterrupt)
        lost += caught is None
    assert lost <= max(1, 0.03 * points)


@pytest.mark.slow_but_for(1)
@every_check
def test_same_seed_same_report(kind: str) -> None:
    one, other = CHECKS[kind](counts(), counts())[1](), CHECKS[kind](counts(), counts())[1]()
    assert untimed(one.to_dict()) == untimed(other.to_dict())
    assert untimed(pickle.loads(pickle.dumps(one)).to_dict()) == untimed(one.to_dict())


def untimed(found: Any) -> Any:
    """A report in JSON's types without the seconds that anything took; NaN is a word, to be equal to itself."""
    if isinstance(found, dict):
        return {key: untimed(value) for key, value in found.items() if key != "seconds"}
    if isinstance(found, list):
        return [untimed(value) for value in found]
    return "NaN" if found != found else found
