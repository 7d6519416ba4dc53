"""Ways to interrupt a call: the exception it ends with, Ctrl-C from outside, and Ctrl-C at a chosen point of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

COUNTED = ("call", "c_return")
"""Where CPython looks for signals: on entering a function, and after one written in C."""


def exception_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> BaseException | None:
    """What `call` raises, Ctrl-C and exits included; None when it returns."""
    try:
        call(*arguments, **options)
    except BaseException as caught:
        return caught
    return None


class AfterEvents:
    """Acts each time that the block has come through so many events: functions entered, and ones written in C left.

    What has not been done by then is done when the block is left. Events are counted and not seconds, so that a busy
    machine changes nothing; `events_of` says how many there are.
    """

    def __init__(self, *acts: tuple[int, Callable[[], None]]) -> None:
        self._events, self._acts = 0, sorted(acts, key=lambda act: act[0])

    def __enter__(self) -> None:
        sys.setprofile(self._count)

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)
        while self._acts:
            self._acts.pop(0)[1]()

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        self._events += event in COUNTED
        if self._acts and self._acts[0][0] <= self._events:
            self._acts.pop(0)[1]()


class CtrlC(AfterEvents):
    """SIGINT from another thread after so many events, or after each of several numbers, as a terminal sends it.

    The other thread sends it as soon as it runs, a few operations later; the block goes on meanwhile. It is left when
    all have been sent and heard.
    """

    def __init__(self, *events: int) -> None:
        self._locks = [threading.Lock() for _ in events]
        for lock in self._locks:
            lock.acquire()
        self._thread = threading.Thread(target=self._send)
        super().__init__(*((count, lock.release) for count, lock in zip(sorted(events), self._locks, strict=True)))

    def _send(self) -> None:
        for lock in self._locks:
            lock.acquire()
            os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> None:
        self._thread.start()
        super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._thread.join()
        wait_for_signals()


def wait_for_signals() -> None:
    """Gives the handler of a signal that has been sent time to run; an exception that it raises ends the wait."""
    for _ in range(10):
        time.sleep(1e-3)


def events_of(call: Callable[[], Any]) -> int:
    """How many of the events that `AfterEvents` counts a call comes through."""
    passed = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal passed
        passed += event in COUNTED

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return passed


class Site(NamedTuple):
    """A place in the code where CPython looks for signals: on entering a function, or after one written in C."""

    file: str
    line: int
    event: str


def sites_of(call: Callable[[], Any]) -> Counter[Site]:
    """How often `call` passes each site."""
    passed: Counter[Site] = Counter()
    _profiled(call, lambda site: passed.update([site]))
    return passed


def interrupted_at(site: Site, passage: int, call: Callable[[], Any]) -> BaseException | None:
    """What `call` raises when SIGINT arrives at the n-th passage of a site."""
    left = passage

    def on_site(passed: Site) -> None:
        nonlocal left
        left -= passed == site
        if left == 0:
            left = -1
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    return exception_of(_profiled, call, on_site)


def _profiled(call: Callable[[], Any], on_site: Callable[[Site], None]) -> None:
    def profiler(frame: FrameType, event: str, argument: object) -> None:
        if event in COUNTED:
            on_site(Site(frame.f_code.co_filename, frame.f_lineno, event))

    sys.setprofile(profiler)
    try:
        call()
    finally:
        sys.setprofile(None)
