"""The search for a culprit, shared by two ranks: each runs some of the calls alone, and what is said is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import Report, check_module
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner


class Tripled(torch.autograd.Function):
    """tanh, with three times its gradient in the first column."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        wrong = gradient * (1 - y * y)
        wrong[..., 0] *= 3
        return wrong


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Tripled.apply(x)
        return y


def block(act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 6))


@contextmanager
def counted() -> Iterator[list[int]]:
    """How often calls are run alone on this rank."""
    runs, alone = [0], CallRunner._alone

    def counting(self: CallRunner, call: Any) -> Any:
        runs[0] += 1
        return alone(self, call)

    CallRunner._alone = counting  # type: ignore[method-assign]
    try:
        yield runs
    finally:
        CallRunner._alone = alone  # type: ignore[method-assign]


def searched() -> tuple[Report, int]:
    torch.manual_seed(0)
    model = nn.Sequential(block(nn.Tanh()), block(nn.Tanh()), block(Wrong()), block(nn.Tanh()))
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    group = dist.group.WORLD if dist.is_initialized() else None
    with counted() as runs:
        report = check_module(model, nn.functional.mse_loss, batch, group=group)
    return report, runs[0]


def without_cost(report: Report) -> list[str]:
    return [note for note in report.notes if "evaluations" not in note]


def test_calls_are_run_alone_on_both_ranks(two_ranks: Ranks) -> None:
    alone, runs = searched()
    (one, own), (other, others) = two_ranks.run(searched)
    assert str(one) == str(other)
    assert one.culprit == alone.culprit == "2.1"
    assert without_cost(one) == without_cost(alone)
    assert own < runs
    assert others >= 8
    cost = next(note for note in one.notes if "runs of single modules" in note)
    assert cost == next(note for note in alone.notes if "runs of single modules" in note)
