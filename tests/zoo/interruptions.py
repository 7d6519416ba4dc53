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


def exception_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> BaseException | None:
    """What `call` raises, Ctrl-C and exits included; None when it returns."""
    try:
        call(*arguments, **options)
    except BaseException as caught:
        return caught
    return None


class CtrlC:
    """SIGINT from another thread after `delay` seconds, as a terminal sends it; leaves when it has been sent."""

    def __init__(self, delay: float) -> None:
        self._thread = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._thread.join()
        time.sleep(0.01)  # the handler runs in the main thread, when it next looks for signals


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
        if event in ("call", "c_return"):
            on_site(Site(frame.f_code.co_filename, frame.f_lineno, event))

    sys.setprofile(profiler)
    try:
        call()
    finally:
        sys.setprofile(None)
