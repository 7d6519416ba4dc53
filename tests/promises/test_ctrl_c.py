"""Promise: Ctrl-C at any moment of a check leaves nothing changed, and comes through as KeyboardInterrupt.

Python cannot raise from everywhere (a generator that is being closed, a lookup that C code makes): there, and only
there, an interrupt is lost and the check goes on.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _python_dispatch as python_dispatch

from tests.zoo.interruptions import (
    AfterEvents,
    CtrlC,
    events_of,
    exception_of,
    interrupted_at,
    sites_of,
    wait_for_signals,
)
from tests.zoo.losses import probe
from tests.zoo.snapshot import Snapshot
from torch_gradcheck import Report, check_module
from torch_gradcheck.torch_internals import dispatch

pytestmark = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="Ctrl-C does not raise in this process"
)


@pytest.fixture(autouse=True)
def put_back(no_collector: None) -> Iterator[None]:
    """What a failing test leaves in the process must not reach other tests."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
    while torch._C._len_torch_dispatch_stack():
        python_dispatch._pop_mode()


def model_and_batch() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1, bias=False)).to(torch.bfloat16)
    model[0].eval()
    model[2].weight.grad = torch.ones(1, 2, dtype=torch.bfloat16)
    return model, torch.randn(3, 2).to(torch.bfloat16)


def check(model: nn.Module, batch: Tensor) -> Report:
    return check_module(model, probe, batch, mode="train")


def events_of_a_check() -> int:
    """Of the second one: the first one in a process loads more."""
    check(*model_and_batch())
    model, batch = model_and_batch()
    return events_of(lambda: check(model, batch))


def check_with_ctrl_c(model: nn.Module, batch: Tensor, reports: list[Report], *events: int) -> None:
    with CtrlC(*events):
        reports.append(check(model, batch))


@pytest.mark.slow
def test_from_another_thread_at_random_points() -> None:
    usual, draw, inside, lost = events_of_a_check(), random.Random(4), 0, 0
    for attempt in range(600):
        model, batch = model_and_batch()
        before, reports = Snapshot(model=model, batch=batch), []
        caught = exception_of(check_with_ctrl_c, model, batch, reports, draw.randint(1, int(1.1 * usual)))
        assert before.changes() == [], f"attempt {attempt}"
        assert caught is None or isinstance(caught, KeyboardInterrupt)
        lost += caught is None
        inside += not reports
        if inside == 50:
            break
    assert inside == 50, "many of the signals must have come while the check was running"
    assert lost <= 2


@pytest.mark.slow
def test_at_many_points_where_python_looks_for_signals() -> None:
    """A sample, drawn with a seed, of the first and last passages of every site a check comes through."""
    check(*model_and_batch())
    model, batch = model_and_batch()
    passed = sites_of(lambda: check(model, batch))
    points = sorted((site, passage) for site, last in passed.items() for passage in {1, last})
    sample = random.Random(6).sample(points, min(100, len(points)))
    lost = 0
    for site, passage in sample:
        before = Snapshot(model=model, batch=batch)
        caught = interrupted_at(site, passage, lambda: check(model, batch))
        assert before.changes() == [], (site, passage)
        assert caught is None or isinstance(caught, KeyboardInterrupt)
        lost += caught is None
    assert lost <= 0.03 * len(sample)


@pytest.mark.slow
def test_where_the_modes_of_the_caller_are_put_aside_and_back() -> None:
    """While they are aside, as for a record of J or a comparison of contents, an interrupt must not lose them."""
    model, batch = model_and_batch()
    with Mode() as mode:
        check(model, batch)
        passed = sites_of(lambda: check(model, batch))
        points = sorted((site, 1) for site in passed if site.file in (dispatch.__file__, python_dispatch.__file__))
        for site, passage in points:
            before = Snapshot(model=model, batch=batch)
            caught = interrupted_at(site, passage, lambda: check(model, batch))
            assert before.changes() == [], site
            assert dispatch.current_modes() == [mode], site
            assert isinstance(caught, KeyboardInterrupt)
    assert len(points) > 10


class Mode(dispatch.DispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_twice_in_a_row() -> None:
    """The second one while the first one's exception is on its way out, or soon after."""
    usual, draw = events_of_a_check(), random.Random(7)
    for attempt in range(20):
        model, batch = model_and_batch()
        before, reports = Snapshot(model=model, batch=batch), []
        first = draw.randint(1, usual)
        caught = exception_of(check_with_ctrl_c, model, batch, reports, first, first + draw.randint(1, 50))
        assert before.changes() == [], f"attempt {attempt}"
        assert isinstance(caught, KeyboardInterrupt)


@contextmanager
def handler(number: int, function: Any) -> Iterator[None]:
    usual = signal.signal(number, function)
    yield
    signal.signal(number, usual)


def test_a_handler_of_the_callers_that_does_not_raise_is_called_and_the_check_goes_on() -> None:
    heard: list[int] = []
    usual = events_of_a_check()
    model, batch = model_and_batch()
    with handler(signal.SIGINT, lambda number, frame: heard.append(number)):
        before, reports = Snapshot(model=model, batch=batch), []
        check_with_ctrl_c(model, batch, reports, usual // 2)
        assert before.changes() == []
    assert heard == [signal.SIGINT]
    assert reports[0].passed


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_an_alarm_of_the_callers_that_raises() -> None:
    """As timeouts do."""

    def time_out(number: int, frame: object) -> None:
        raise TimeoutError

    usual, draw, lost = events_of_a_check(), random.Random(5), 0
    with handler(signal.SIGALRM, time_out):
        for attempt in range(30):
            model, batch = model_and_batch()
            before = Snapshot(model=model, batch=batch)
            caught = exception_of(_alarmed, model, batch, draw.randint(1, usual))
            assert before.changes() == [], f"attempt {attempt}"
            assert caught is None or isinstance(caught, TimeoutError)
            lost += caught is None
    assert lost <= 2


def _alarmed(model: nn.Module, batch: Tensor, events: int) -> None:
    with AfterEvents((events, lambda: signal.setitimer(signal.ITIMER_REAL, 1e-6))):
        check(model, batch)
    wait_for_signals()
