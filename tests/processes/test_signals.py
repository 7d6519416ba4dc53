from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from torch_gradcheck.processes.signals import HELD, HeldSignals

received: list[int] = []


def note(number: int, frame: FrameType | None) -> None:
    received.append(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers that note what arrives, instead of the process's own."""
    received.clear()
    before = {number: signal.signal(number, note) for number in HELD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def protected(seen: list[list[int]], number: int = signal.SIGINT) -> None:
    signal.raise_signal(number)
    deeper(number)
    seen.append(list(received))


def deeper(number: int) -> None:
    signal.raise_signal(number)


@pytest.mark.parametrize("number", HELD, ids=lambda number: number.name)
def test_in_protected_code_a_signal_waits_until_release(number: int) -> None:
    held, seen = HeldSignals(frozenset({protected.__code__})), []
    held.install()
    protected(seen, number)
    assert seen == [[]]
    assert received == []
    assert held.waiting
    held.release()
    assert received == [number, number]
    assert not held.waiting


def test_elsewhere_it_goes_straight_to_the_callers_handler() -> None:
    held = HeldSignals(frozenset({protected.__code__}))
    held.install()
    signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT]
    assert not held.waiting
    held.release()
    assert received == [signal.SIGINT]


def test_the_callers_handlers_come_back() -> None:
    held = HeldSignals(frozenset())
    held.install()
    assert signal.getsignal(signal.SIGINT) is not note
    held.release()
    assert all(signal.getsignal(number) is note for number in HELD)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=lambda handler: handler.name)
def test_handlers_that_are_not_pythons_are_left_alone(handler: Any) -> None:
    signal.signal(signal.SIGALRM, handler)
    held = HeldSignals(frozenset())
    held.install()
    assert signal.getsignal(signal.SIGALRM) == handler
    held.release()
    assert signal.getsignal(signal.SIGALRM) == handler


def test_a_handler_that_raises_raises_from_release_with_all_handlers_back() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    held = HeldSignals(frozenset({protected.__code__}))
    held.install()
    protected([])
    with pytest.raises(KeyboardInterrupt):
        held.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is note


def test_in_another_thread_nothing_is_installed() -> None:
    held, handlers = HeldSignals(frozenset()), []

    def work() -> None:
        held.install()
        handlers.append(signal.getsignal(signal.SIGINT))
        held.release()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [note]


def test_release_without_install_does_nothing() -> None:
    held = HeldSignals(frozenset())
    held.release()
    assert all(signal.getsignal(number) is note for number in HELD)


def opening(held: HeldSignals, run: Any) -> None:
    """A protected function that calls one which is not."""
    signal.raise_signal(signal.SIGINT)
    opened(held, run)


def opened(held: HeldSignals, run: Any) -> None:
    held.deliver()
    run()


def test_in_opened_code_what_has_waited_is_delivered_and_nothing_is_held() -> None:
    held, seen = HeldSignals(frozenset({opening.__code__}), frozenset({opened.__code__})), []
    held.install()

    def run() -> None:
        seen.append(list(received))
        signal.raise_signal(signal.SIGTERM)
        seen.append(list(received))

    opening(held, run)
    held.release()
    assert seen == [[signal.SIGINT], [signal.SIGINT, signal.SIGTERM]]
    assert not held.waiting
    assert not held.lost_patience


@pytest.mark.parametrize("patience", [0.0, 60.0], ids=["none", "enough"])
def test_a_second_signal_gets_through_where_patience_ends(patience: float) -> None:
    held, seen = HeldSignals(frozenset({protected.__code__}), patience=patience), []
    held.install()
    protected(seen)
    assert held.lost_patience is (patience == 0)
    assert seen == [[signal.SIGINT] if patience == 0 else []]
    held.release()
    assert received == [signal.SIGINT] * (1 if patience == 0 else 2)
