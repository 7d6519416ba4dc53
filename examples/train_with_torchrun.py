"""Trains a classifier of real digits in several processes, a GradientMonitor in the loop of each; then with mistakes.

    torchrun --nproc-per-node 2 examples/train_with_torchrun.py

prints

    gradients checked on 2 of 60 training steps, none wrong
    accuracy 0.952

    Accumulates within no_sync(), and never leaves it: each rank keeps the gradient of its own batch.
        unreduced in 2.bias: not reduced over the ranks: .grad on each rank is the gradient of that rank's own batch:
        no_sync() was left on ...

    Sums the gradients over the ranks by hand, and does not divide by their number.
        scaled in 0.weight: dθ = 2 × the right gradient in every entry (residual 0e+00): summed over the 2 ranks, and
        not divided by their number, ...

The command shares the check of one model between these processes:

    torchrun --nproc-per-node 2 -m torch_gradcheck examples/train_with_torchrun.py:problem
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_gradcheck import GradientMonitor

Batch = tuple[Tensor, Tensor]
Backward = Callable[[DistributedDataParallel, Batch], None]

STEPS = 60
BATCH_SIZE = 32
loss_fn = nn.CrossEntropyLoss()


def classifier() -> nn.Module:
    """64 pixels, a hidden layer, ten scores."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def digits() -> Batch:
    """1,797 images of 8×8 pixels in [0, 1], and their labels."""
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def problem() -> tuple[nn.Module, nn.Module, Batch]:
    """What `torch-gradcheck` asks for, the same in every process: model, loss and batch."""
    images, labels = digits()
    return classifier(), loss_fn, (images[:BATCH_SIZE], labels[:BATCH_SIZE])


def batches(images: Tensor, labels: Tensor) -> Iterator[Batch]:
    """Random batches without end, of this rank's share of the images."""
    images, labels = images[dist.get_rank() :: dist.get_world_size()], labels[dist.get_rank() :: dist.get_world_size()]
    while True:
        for rows in torch.randperm(len(images)).split(BATCH_SIZE)[:-1]:
            yield images[rows], labels[rows]


def backward(model: DistributedDataParallel, batch: Batch) -> None:
    """What each step of a right loop leaves in `.grad`: the gradient of the mean of all ranks' losses."""
    model.zero_grad()
    loss_fn(model(batch[0]), batch[1]).backward()


def forgotten_reduction(model: DistributedDataParallel, batch: Batch) -> None:
    """Accumulates within no_sync(), and never leaves it: each rank keeps the gradient of its own batch."""
    model.zero_grad()
    with model.no_sync():
        loss_fn(model(batch[0]), batch[1]).backward()


def forgotten_division(model: DistributedDataParallel, batch: Batch) -> None:
    """Sums the gradients over the ranks by hand, and does not divide by their number."""
    forgotten_reduction(model, batch)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)


MISTAKES = (forgotten_reduction, forgotten_division)


def train(step: Backward, monitor: GradientMonitor, model: DistributedDataParallel, steps: int = STEPS) -> None:
    """A training loop with a monitor in it, as every rank runs it: one line, between the backward and the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(dist.get_rank())
    for _, batch in zip(range(steps), batches(*digits()), strict=False):
        step(model, batch)
        monitor.step(batch)
        optimizer.step()


def right() -> tuple[DistributedDataParallel, GradientMonitor]:
    """The right loop, checked on steps 0 and 50: a wrong gradient would raise, on all ranks."""
    model = DistributedDataParallel(classifier())
    with GradientMonitor(model, loss_fn, at=[0, 50]) as monitor:
        train(backward, monitor, model)
    return model, monitor


def wrong(mistake: Backward) -> GradientMonitor:
    """A loop with a mistake, checked on step 0."""
    model = DistributedDataParallel(classifier())
    with GradientMonitor(model, loss_fn, on_mismatch="record") as monitor:
        train(mistake, monitor, model, steps=1)
    return monitor


def accuracy(model: nn.Module) -> float:
    """The share of all digits that are recognised."""
    images, labels = digits()
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).double().mean())


def told() -> list[str]:
    """What the monitor has found in each loop, the same lines on every rank."""
    model, monitor = right()
    lines = [monitor.summary, f"accuracy {accuracy(model):.3f}"]
    for mistake in MISTAKES:
        row = wrong(mistake).reports[0].mismatches[0]
        assert row.diagnosis is not None
        lines += ["", f"{mistake.__doc__}", f"    {row.diagnosis.kind} in {row.name}: {row.diagnosis.message}"]
    return lines


def main() -> None:
    """Starts the group that torchrun has made, trains, and prints on rank 0."""
    dist.init_process_group("gloo")
    lines = told()
    if dist.get_rank() == 0:
        print("\n".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
