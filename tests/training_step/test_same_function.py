"""A `.grad` is not judged where the step drew random numbers that the check cannot draw again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from torch_gradcheck import GradientMonitor, Report, check_closure, check_module

GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(1),
    "numpy": lambda: np.random.default_rng(1),
    "numpy's old": lambda: np.random.RandomState(1),
    "Python": lambda: random.Random(1),
}


def drawn_from(generator: Any) -> float:
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    return float(generator.random() if hasattr(generator, "random") else generator.random_sample())


def noisy_loss(output: Tensor, target: Tensor, generator: Any) -> Tensor:
    return mse_loss(output * (1 + drawn_from(generator)), target)


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)


def unjudged(report: Report | None) -> str:
    """The reason why no row of `.grad` was judged."""
    assert report is not None
    in_grad = report if report.in_grad is None else report.in_grad
    assert {str(row.status) for row in in_grad} == {"undecided"}
    return in_grad.parameters[0].reason


made = pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)


@made
def test_a_monitored_step_that_drew_from_a_generator_in_the_batch(make: Callable[[], Any]) -> None:
    model, x, target = problem()
    generator = make()
    with GradientMonitor(model, noisy_loss) as monitor:
        noisy_loss(model(x), target, generator).backward()
        report = monitor.step((x, target, generator))
    assert "a random generator of its own" in unjudged(report)
    assert report
    assert report.passed


@made
def test_a_monitored_step_that_drew_from_a_generator_of_the_loss(make: Callable[[], Any]) -> None:
    model, x, target = problem()
    generator = make()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return noisy_loss(output, target, generator)

    with GradientMonitor(model, loss) as monitor:
        loss(model(x), target).backward()
        report = monitor.step((x, target))
    assert "a random generator of its own" in unjudged(report)


@made
def test_a_step_nobody_watched_that_drew_from_a_generator_of_the_closure(make: Callable[[], Any]) -> None:
    model, x, target = problem()
    generator = make()

    def closure() -> Tensor:
        return noisy_loss(model(x), target, generator)

    closure().backward()
    assert "nobody saw what it started from" in unjudged(check_closure(model, closure, gradients="grad"))


def test_a_parameter_that_its_own_generator_skipped_is_not_called_missing() -> None:
    """The check would draw another number, and reach it."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    x, target = torch.randn(5, 3), torch.randn(5, 2)
    generator = torch.Generator().manual_seed(0)

    def skipping(output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        through = float(torch.rand((), generator=generator)) < 0.5
        return mse_loss(output if through else model[1](x), target)

    seen = []
    for _ in range(6):
        model.zero_grad()
        skipping(model(x), target, generator).backward()
        seen.append(model[0].weight.grad is None)
        report = check_module(model, skipping, (x, target, generator), gradients="grad")
        assert unjudged(report)
    assert len(set(seen)) == 2


@pytest.mark.parametrize("hold", [lambda g: g, lambda g: {"noise": [g]}], ids=["attribute", "in a container"])
def test_a_generator_that_a_module_holds_is_seen(hold: Callable[[Any], Any]) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.held = hold(torch.Generator().manual_seed(5))

        def forward(self, x: Tensor) -> Tensor:
            generator = self.held["noise"][0] if isinstance(self.held, dict) else self.held
            return self.linear(x) * (1 + torch.rand((), generator=generator))  # type: ignore[no-any-return]

    _, x, target = problem()
    model = Noisy()
    with GradientMonitor(model, mse_loss) as monitor:
        mse_loss(model(x), target).backward()
        report = monitor.step((x, target))
    assert report
    assert report.in_grad
    assert {str(row.status) for row in report.in_grad} == {"match"}
