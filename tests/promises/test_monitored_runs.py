"""Promise: a training run with the monitor is bit for bit the run without it, whatever the loop is made of."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_gradcheck import GradientMonitor

STEPS = 34
cross_entropy = nn.CrossEntropyLoss()


class Net(nn.Module):
    """Batch statistics, dropout, and optionally a checkpointed middle."""

    def __init__(self, checkpointed: bool | None = None) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3))
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2))
        self.last = nn.Linear(6, 3)
        self.reentrant = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.middle(x) if self.reentrant is None else checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.last(x)


class Run:
    """A training run: what it starts from, and all that it can leave behind."""

    def __init__(self, model: nn.Module | None = None, **options: Any) -> None:
        torch.manual_seed(3)
        np.random.seed(4)
        random.seed(5)
        self.model = Net() if model is None else model
        self.options = options
        self.losses: list[float] = []
        self.kept: dict[str, Any] = {}

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches that draw from all three generators as they come."""
        for _ in range(STEPS):
            x = torch.randn(5, 4) * (1 + 0.1 * random.random()) + 0.1 * float(np.random.standard_normal())
            yield x, torch.randint(0, 3, (5,))

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW, with its state kept."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.kept["optimizer"] = optimizer
        return optimizer

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def state(self) -> dict[str, Any]:
        """Everything, as bytes and numbers."""
        module = getattr(self.model, "_orig_mod", self.model)
        facts: dict[str, Any] = {"losses": self.losses, "flags": [m.training for m in module.modules()]}
        facts |= dict(module.state_dict())
        facts |= {f"{name}.grad": p.grad for name, p in module.named_parameters()}
        for name, thing in self.kept.items():
            facts[name] = copy.deepcopy(thing.state_dict())
        facts["random"] = (torch.get_rng_state(), np.random.get_state()[1], np.random.get_state()[2], random.getstate())
        return facts


def plain(run: Run, step: Callable[..., Any]) -> None:
    optimizer = run.optimizer()
    for batch in run.batches():
        optimizer.zero_grad()
        run.loss(batch).backward()
        step(batch)
        optimizer.step()


def scheduled(run: Run, step: Callable[..., Any]) -> None:
    optimizer = run.optimizer()
    run.kept["scheduler"] = scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS + 1)
    for batch in run.batches():
        optimizer.zero_grad()
        run.loss(batch).backward()
        step(batch)
        optimizer.step()
        scheduler.step()


def autocast(run: Run, step: Callable[..., Any]) -> None:
    optimizer = run.optimizer()
    for batch in run.batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = run.loss(batch)
        loss.backward()
        step(batch)
        optimizer.step()


def scaled(run: Run, step: Callable[..., Any]) -> None:
    """Its scaler is given to the monitor: `.grad` is scaled when `step` is called."""
    optimizer = run.optimizer()
    run.kept["scaler"] = scaler = run.options["scaler"]
    for batch in run.batches():
        optimizer.zero_grad()
        scaler.scale(run.loss(batch)).backward()
        step(batch)
        scaler.step(optimizer)
        scaler.update()


def accumulating(run: Run, step: Callable[..., Any]) -> None:
    optimizer = run.optimizer()
    for number, batch in enumerate(run.batches(), 1):
        (run.loss(batch) / 5).backward()
        step(batch)
        if number % 5 == 0:
            optimizer.step()
            optimizer.zero_grad()


def weighted(run: Run, step: Callable[..., Any]) -> None:
    """Windows of 4 batches that count 1, 2, 3, 4, the 2 epochs of 17 batches each ending in a window of one batch."""
    optimizer = run.optimizer()
    for number, batch in enumerate(run.batches()):
        place, left = number % 17 % 4, 17 - number % 17
        total = sum(range(1, 5)) if (place + 1 < 4 and left + place > 4) or place == 3 else place + 1
        (run.loss(batch) * ((place + 1) / total)).backward()
        ends = place == 3 or left == 1
        step(batch, weight=place + 1, last=ends)
        if ends:
            optimizer.step()
            optimizer.zero_grad()


def clipping(run: Run, step: Callable[..., Any]) -> None:
    optimizer = run.optimizer()
    for batch in run.batches():
        optimizer.zero_grad()
        run.loss(batch).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
        step(batch)
        optimizer.step()


def averaging(run: Run, step: Callable[..., Any]) -> None:
    """An exponential moving average of the weights."""
    optimizer = run.optimizer()
    average = torch.optim.swa_utils.AveragedModel(
        run.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    run.kept["average"] = average
    for batch in run.batches():
        optimizer.zero_grad()
        run.loss(batch).backward()
        step(batch)
        optimizer.step()
        average.update_parameters(run.model)


def in_backward(run: Run, step: Callable[..., Any]) -> None:
    """Optimizers that step as soon as a gradient is accumulated."""
    optimizers = {p: torch.optim.AdamW([p], lr=1e-2) for p in run.model.parameters()}
    run.kept |= {f"optimizer {number}": optimizer for number, optimizer in enumerate(optimizers.values())}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(update)
    for batch in run.batches():
        run.loss(batch).backward()
        step(batch)


def compiled(backend: str) -> Callable[[], nn.Module]:
    return lambda: torch.compile(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), backend=backend)


LOOPS: dict[str, tuple[Callable[[Run, Callable[..., Any]], None], Callable[[], nn.Module], dict[str, Any]]] = {
    "AdamW": (plain, Net, {}),
    "scheduler": (scheduled, Net, {}),
    "train mode checked too": (plain, Net, {"mode": "train"}),
    "bfloat16 autocast": (autocast, Net, {}),
    "GradScaler": (scaled, Net, {"scaler": lambda: torch.amp.GradScaler("cpu", init_scale=256, growth_interval=7)}),
    "gradient accumulation": (accumulating, Net, {"accumulate": 5}),
    "weighted accumulation": (weighted, Net, {"accumulate": 4}),
    "clipping": (clipping, Net, {"clip_norm": 0.5}),
    "moving average": (averaging, Net, {}),
    "checkpoint": (plain, lambda: Net(checkpointed=False), {}),
    "reentrant checkpoint": (plain, lambda: Net(checkpointed=True), {}),
    "optimizer in backward": (in_backward, Net, {}),
    "compiled": (plain, compiled("eager"), {}),
    "compiled by aot autograd": (plain, compiled("aot_eager"), {}),
    "bfloat16 weights": (plain, lambda: Net().bfloat16(), {}),
}


def trained(name: str, monitored: bool) -> tuple[dict[str, Any], GradientMonitor | None]:
    loop, build, options = LOOPS[name]
    torch.manual_seed(2)
    model = build()
    made = {key: value() if callable(value) else value for key, value in options.items()}
    run = Run(model, **made)
    if name == "bfloat16 weights":
        plain_batches = run.batches
        run.batches = lambda: ((x.bfloat16(), y) for x, y in plain_batches())  # type: ignore[method-assign]
    if not monitored:
        loop(run, lambda batch, **_: None)
        return run.state(), None
    steps = [0, 1 if "accumulate" in options else 20]
    with GradientMonitor(model, cross_entropy, at=steps, on_mismatch="record", **made) as monitor:
        loop(run, monitor.step)
    return run.state(), monitor


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("name", LOOPS)
def test_the_run_with_the_monitor_is_the_run_without_it(name: str) -> None:
    alone, _ = trained(name, monitored=False)
    watched, monitor = trained(name, monitored=True)
    assert [key for key in alone if not same(alone[key], watched[key])] == []
    assert monitor is not None
    assert len(monitor.reports) == 2
    assert not monitor.errors
    for report in monitor.reports.values():
        assert report.passed, str(report)
        assert report.in_grad is not None
        judged = {str(row.status) for row in report.in_grad}
        expected = {"undecided"} if name == "optimizer in backward" else {"match", "flat"}
        assert judged <= expected | ({"undecided"} if name.startswith("bfloat16") else set()), str(report.in_grad)
        assert "match" in judged or name == "optimizer in backward"


def mean_of_means(run: Run, step: Callable[..., Any]) -> None:
    optimizer = run.optimizer()
    for number, batch in enumerate(run.batches(), 1):
        (run.loss(batch) / 2).backward()
        step(batch, weight=1 + number % 2)
        if number % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()


def another_batch(run: Run, step: Callable[..., Any]) -> None:
    optimizer = run.optimizer()
    for batch in run.batches():
        optimizer.zero_grad()
        run.loss(batch).backward()
        step((batch[0].roll(1, 1), batch[1]))
        optimizer.step()


@pytest.mark.parametrize(
    ("loop", "options", "words"),
    [
        pytest.param(mean_of_means, {"accumulate": 2}, "averaged with equal weights", id="the mean of means"),
        pytest.param(another_batch, {}, "the forward of this step saw", id="another batch"),
        pytest.param(plain, {"clip_norm": 1e-3}, "the gradients were not clipped", id="no clipping"),
    ],
)
def test_a_run_with_mistakes_is_the_same_run_too(
    loop: Callable[[Run, Callable[..., Any]], None], options: dict[str, Any], words: str
) -> None:
    states = []
    for watched in (False, True):
        torch.manual_seed(2)
        run = Run(Net())
        with GradientMonitor(run.model, cross_entropy, at=1, on_mismatch="record", **options) as monitor:
            loop(run, monitor.step if watched else lambda batch, **_: None)
        states.append(run.state())
    alone, seen = states
    assert [key for key in alone if not same(alone[key], seen[key])] == []
    said = [row.diagnosis.message for row in monitor.reports[1].mismatches if row.diagnosis]
    assert said
    assert [message for message in said if words not in message] == []


def test_the_runs_compared_depend_on_every_draw() -> None:
    """The comparison would see a monitor that draws a single number."""
    alone, _ = trained("AdamW", monitored=False)
    loop, build, _ = LOOPS["AdamW"]
    torch.manual_seed(2)
    run = Run(build())
    loop(run, lambda batch: torch.rand(()))
    assert not same(alone["losses"], run.losses)
