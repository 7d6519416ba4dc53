"""Figures of checked steps written to a logger: names, steps, order, and what a logger may be or raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torch_gradcheck import GradientMonitor, InvalidRequestError
from torch_gradcheck.monitoring.history import GradientHistory, GradientRecord
from torch_gradcheck.monitoring.scalar_log import ScalarLog

mse = nn.MSELoss()
X, Y = torch.ones(3, 2), torch.zeros(3, 1)

ROWS = GradientHistory([GradientRecord(7, "w", 1, 3.0, 3.0, 3.0, 0.0, True, 2.0, 0.5, 0.25)])


class Writer:
    """As `torch.utils.tensorboard.SummaryWriter`."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        self.seen.append((tag, scalar_value, global_step or 0))


class Logger:
    """As a logger of Lightning, or an experiment of Comet, whose second argument is something else."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: dict[str, float], prefix: str = "", step: int | None = None) -> None:
        self.seen.append((metrics, step))


def test_a_summary_writer_gets_one_scalar_at_a_time() -> None:
    writer = Writer()
    ScalarLog(writer, leads=True).write_gradients(7, ROWS, None)
    assert writer.seen == [
        ("gradcheck/total_grad_norm", 3.0, 7),
        ("gradcheck/grad_norm/w", 3.0, 7),
        ("gradcheck/grad_max/w", 3.0, 7),
        ("gradcheck/zeros/w", 0.0, 7),
        ("gradcheck/weight_norm/w", 2.0, 7),
    ]


def test_a_logger_gets_all_of_them_with_the_step() -> None:
    logger = Logger()
    ScalarLog(logger, leads=True).write_update(7, ROWS)
    assert logger.seen == [({"gradcheck/update_ratio/w": 0.25}, 7)]


def test_other_ranks_write_nothing() -> None:
    logger = Logger()
    ScalarLog(logger, leads=False).write_update(7, ROWS)
    assert logger.seen == []


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"log must be a function of \(values, step\).*got str 'runs/1'"):
        GradientMonitor(nn.Linear(2, 1), mse, log="runs/1")


def run(log: Any, steps: int = 3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientMonitor(model, mse, log=log, **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            mse(model(X), Y).backward()
            monitor.step((X, Y))
            optimizer.step()
    return model


def test_a_function_gets_a_step_when_it_was_checked_and_its_update_before_the_next() -> None:
    seen: list[tuple[int, set[str]]] = []
    run(lambda values, step: seen.append((step, {name.split("/")[1] for name in values})), at=[0, 1])
    of_check = {"total_grad_norm", "passed", "mismatches", "grad_norm", "grad_max", "zeros", "weight_norm", "error_bar"}
    assert seen == [(0, of_check), (0, {"update_ratio"}), (1, of_check), (1, {"update_ratio"})]


def test_what_the_report_says_is_among_them() -> None:
    seen: dict[str, float] = {}
    run(lambda values, step: seen.update(values), steps=1)
    assert (seen["gradcheck/passed"], seen["gradcheck/mismatches"]) == (1, 0)
    wrong: dict[str, float] = {}
    model = nn.Linear(2, 1)
    with GradientMonitor(model, mse, log=lambda values, step: wrong.update(values), on_mismatch="record") as monitor:
        (3 * mse(model(X), Y)).backward()
        monitor.step((X, Y))
    assert (wrong["gradcheck/passed"], wrong["gradcheck/mismatches"]) == (0, 2)


@pytest.mark.parametrize("call", [0, 1, 2], ids=["of the first check", "of its update", "of the second check"])
def test_what_a_logger_raises_comes_through_and_the_monitor_goes_on(call: int) -> None:
    calls: list[int] = []

    def log(values: dict[str, float], step: int) -> None:
        calls.append(step)
        if len(calls) == call + 1:
            raise OSError("disk full")

    model = nn.Linear(2, 1)
    monitor = GradientMonitor(model, mse, at=[0, 2, 4], log=log)
    raised = 0
    for _ in range(6):
        model.zero_grad()
        mse(model(X), Y).backward()
        try:
            monitor.step((X, Y))
        except OSError:
            raised += 1
    assert raised == 1
    assert list(monitor.reports) == [0, 2, 4]
    assert monitor.history.steps == [0, 2, 4]
    assert not model._forward_pre_hooks


def test_a_logged_run_is_the_run_without_it() -> None:
    logged, plain = run(lambda values, step: None, at=[0, 1]), run(None, at=())
    assert all(torch.equal(one, other) for one, other in zip(logged.parameters(), plain.parameters(), strict=True))
