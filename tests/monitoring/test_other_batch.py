"""A batch given to `step` that the step's forward did not see is said, where `.grad` is wrong, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import GradientMonitor, Report

Batch = tuple[Tensor, Tensor]
NOTE = "the forward of this step saw other inputs than the batch given to step()"
mse = nn.MSELoss()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 2))


def batch(seed: int, rows: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 2, generator=generator)


def same(x: Tensor) -> Tensor:
    return x


def stepped(
    trained_on: Batch, given: Any, transform: Callable[[Tensor], Tensor] = same, spoil: float = 1.0, **options: Any
) -> Report:
    model = net()
    with GradientMonitor(model, mse, on_mismatch="record", **options) as monitor:
        (spoil * mse(model(transform(trained_on[0])), trained_on[1])).backward()
        report = monitor.step(given)
    assert report is not None
    return report


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(batch(2), "a tensor of shape 6×4 holds other numbers", id="other numbers"),
        pytest.param(batch(2, rows=3), "shape 6×4 where the batch has 3×4", id="another shape"),
    ],
)
def test_another_batch_is_said(given: Batch, words: str) -> None:
    report = stepped(batch(1), given)
    assert len(report.mismatches) == 4
    assert report.notes[0] == f"{NOTE} ({words})"
    assert {row.diagnosis.message for row in report.mismatches if row.diagnosis} == {
        f"{NOTE} ({words}): .grad is of another batch"
    }


def test_a_multiple_by_chance_is_of_another_batch_too() -> None:
    """The two numbers of the last bias sum to 0 under a softmax, whatever the batch."""
    model, loss_fn, targets = net(), nn.CrossEntropyLoss(), torch.tensor([0, 1, 1, 0, 1, 1])
    with GradientMonitor(model, loss_fn, on_mismatch="record") as monitor:
        loss_fn(model(batch(1)[0]), 1 - targets).backward()
        monitor.step((batch(2)[0], targets))
    report = monitor.reports[0]
    assert {row.diagnosis.message for row in report.mismatches if row.diagnosis} == {
        f"{NOTE} (a tensor of shape 6×4 holds other numbers): .grad is of another batch"
    }


def brighter(x: Tensor) -> Tensor:
    return x + 0.5 * torch.randn_like(x)


def test_grad_that_is_right_for_what_the_forward_saw_is_said_to_be() -> None:
    report = stepped(batch(1), batch(1), transform=brighter)
    assert report.notes[0].startswith(NOTE)
    assert {str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis} == {"stale"}
    assert "the gradient of the inputs that the forward of this step saw" in str(report)


@pytest.mark.parametrize(
    "transform",
    [same, lambda x: x.double().float(), lambda x: x.clone().requires_grad_(), lambda x: x.half().float()],
    ids=["the batch", "cast and back", "a copy that requires grad", "rounded"],
)
def test_the_same_inputs_are_never_said_to_be_others(transform: Callable[[Tensor], Tensor]) -> None:
    report = stepped(batch(1), batch(1), transform=transform)
    assert not any(note.startswith(NOTE) for note in report.notes)


def test_a_wrong_gradient_of_the_right_batch_is_not_said_to_be_of_another() -> None:
    report = stepped(batch(1), batch(1), spoil=1.7)
    assert len(report.mismatches) == 4
    assert not any(note.startswith(NOTE) for note in report.notes)


class WritesToItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mul_(2))


def test_inputs_that_the_forward_wrote_to_are_not_compared() -> None:
    torch.manual_seed(0)
    model = WritesToItsInput()
    x, y = batch(1)
    with GradientMonitor(model, mse, on_mismatch="record") as monitor:
        mse(model(x.clone()), y).backward()
        model.layer.weight.grad[0, 0] += 1  # type: ignore[index]
        report = monitor.step((x, y))
    assert report is not None
    assert [row.name for row in report.mismatches] == ["layer.weight"]
    assert not any(note.startswith(NOTE) for note in report.notes)


def test_a_closure_that_is_given_another_batch_is_said() -> None:
    model = net()
    monitor = GradientMonitor.of_closure(model, lambda pair: mse(model(pair[0]), pair[1]), on_mismatch="record")
    x, y = batch(1)
    mse(model(x), y).backward()
    report = monitor.step(batch(2))
    assert report is not None
    assert report.notes[0].startswith(NOTE)


def test_what_a_closure_does_to_its_batch_counts_as_the_batch() -> None:
    model = net()

    def closure(pair: Batch) -> Tensor:
        return mse(model(brighter(pair[0])), pair[1])

    monitor = GradientMonitor.of_closure(model, closure, on_mismatch="record")
    with monitor.watch():
        closure(batch(1)).backward()
    model.get_parameter("3.bias").grad[0] += 1  # type: ignore[index]
    report = monitor.step(batch(1))
    assert report is not None
    assert [row.name for row in report.mismatches] == ["3.bias"]
    assert not any(note.startswith(NOTE) for note in report.notes)
