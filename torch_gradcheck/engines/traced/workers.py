"""Chunks on all cores: each thread evaluates chunks of its own, and operations inside them use one core.

Operations on one chunk are too short to be shared between cores; the threads meet in Python's lock alone, which torch
gives back while an operation runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from threading import Lock, Thread
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def one_core() -> Iterator[None]:
    """Operations of this thread run on one core: spreading short ones costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_all_cores(take: Callable[[], T | None], work: Callable[[T], None], threads: int) -> None:
    """Call work(chunk) for every chunk that take() gives, until it gives None.

    Args:
        take: called by one thread at a time.
        work: called by several threads at a time; the first exception ends the work of all and is raised here.
        threads: how many, this one included; each runs torch's operations on one core meanwhile.
    """
    lock, failures = Lock(), list[BaseException]()
    others = [
        Thread(target=_drain_on_one_core, args=(take, work, lock, failures), daemon=True) for _ in range(threads - 1)
    ]
    with one_core():
        try:
            for other in others:
                other.start()
            drain(take, work, lock, failures)
        except BaseException as error:  # Ctrl-C too: the others are not left running
            failures.append(error)
        finally:
            for other in others:
                with suppress(RuntimeError):  # an interrupt came before it had started: it finds a failure, and ends
                    other.join()
    if failures:
        raise failures[0]


def _drain_on_one_core(
    take: Callable[[], T | None], work: Callable[[T], None], lock: Lock, failures: list[BaseException]
) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        try:
            drain(take, work, lock, failures)
        except BaseException as error:
            failures.append(error)


def drain(
    take: Callable[[], T | None],
    work: Callable[[T], None],
    lock: Lock | None = None,
    failures: Sequence[BaseException] = (),
) -> None:
    """Call work(chunk) for every chunk that take() gives, until it gives None or another thread has failed."""
    while not failures:
        with lock or nullcontext():
            chunk = take()
        if chunk is None:
            return
        work(chunk)
