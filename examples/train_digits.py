"""Trains a classifier of real digits with a GradientMonitor in the loop; then the same loop with four classic mistakes.

python examples/train_digits.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from torch_gradcheck import GradientMonitor

Batch = tuple[Tensor, Tensor]
Backward = Callable[[nn.Module, Batch], None]

STEPS = 401
BATCH_SIZE = 50
loss_fn = nn.CrossEntropyLoss()


def classifier() -> nn.Module:
    """64 pixels, a hidden layer with batch statistics and dropout, ten scores."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def digits() -> Batch:
    """1,797 images of 8×8 pixels in [0, 1], and their labels."""
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def batches(images: Tensor, labels: Tensor) -> Iterator[Batch]:
    """Random batches, without end."""
    while True:
        for rows in torch.randperm(len(images)).split(BATCH_SIZE)[:-1]:
            yield images[rows], labels[rows]


def backward(model: nn.Module, batch: Batch) -> None:
    """What each step of a right loop leaves in `.grad`."""
    model.zero_grad()
    loss_fn(model(batch[0]), batch[1]).backward()


def forgotten_zero_grad(model: nn.Module, batch: Batch) -> None:
    """zero_grad() is missing."""
    loss_fn(model(batch[0]), batch[1]).backward()


def forgotten_division(model: nn.Module, batch: Batch) -> None:
    """Accumulates over 4 passes, and does not divide the loss by 4."""
    model.zero_grad()
    loss = loss_fn(model(batch[0]), batch[1])
    for _ in range(4):
        loss.backward(retain_graph=True)


def forgotten_unscale(model: nn.Module, batch: Batch) -> None:
    """Scales the loss by 2^16 for mixed precision, and does not unscale the gradients."""
    model.zero_grad()
    (loss_fn(model(batch[0]), batch[1]) * 2**16).backward()


def misplaced_zero_grad(model: nn.Module, batch: Batch) -> None:
    """zero_grad() comes after backward()."""
    loss_fn(model(batch[0]), batch[1]).backward()
    model.zero_grad()


MISTAKES = (forgotten_zero_grad, forgotten_division, forgotten_unscale, misplaced_zero_grad)


def train(model: nn.Module, step: Backward, monitor: GradientMonitor, steps: int = STEPS) -> None:
    """A training loop with a monitor in it: one line, between the backward and the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _, batch in zip(range(steps), batches(*digits()), strict=False):
        step(model, batch)
        monitor.step(batch)
        optimizer.step()


def accuracy(model: nn.Module) -> float:
    """The share of all digits that are recognised."""
    images, labels = digits()
    with torch.no_grad():
        return float((model.eval()(images).argmax(dim=1) == labels).double().mean())


def right() -> tuple[nn.Module, GradientMonitor]:
    """The right loop, checked on steps 0, 200 and 400: a wrong gradient would raise."""
    model = classifier()
    with GradientMonitor(model, loss_fn, at=[0], every=200) as monitor:
        train(model, backward, monitor)
    return model, monitor


def wrong(mistake: Backward) -> GradientMonitor:
    """A loop with a mistake, checked on steps 0 and 1."""
    model = classifier()
    monitor = GradientMonitor(model, loss_fn, at=[0, 1], on_mismatch="record")
    train(model, mistake, monitor, steps=2)
    return monitor


def main() -> None:
    """Prints what the monitor found in each loop, and how the gradient of one layer went in the right one."""
    model, monitor = right()
    print(monitor.summary)
    print(f"accuracy {accuracy(model):.3f}\n")
    print(f"{monitor.history['4.weight']}\n")
    for mistake in MISTAKES:
        monitor = wrong(mistake)
        step, report = next((step, report) for step, report in monitor.reports.items() if report.mismatches)
        row = report.mismatches[0]
        assert row.diagnosis is not None
        print(f"{mistake.__doc__}\n    step {step}: {row.diagnosis.kind} in {row.name}: {row.diagnosis.message}\n")


if __name__ == "__main__":
    main()
