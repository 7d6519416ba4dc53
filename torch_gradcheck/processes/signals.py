"""Ctrl-C held back: a signal that arrives inside a protected function waits until the function has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from types import CodeType, FrameType
from typing import Any

HELD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name))
"""The numbers of the signals that are held back, as far as the system has them."""

Handler = Callable[[int, FrameType | None], Any]


class HeldSignals:
    """Wraps the Python handlers of `HELD` signals between `install` and `release`.

    A signal that arrives while one of the protected code objects is running (anywhere on the stack) is remembered;
    any other goes straight to the caller's own handler, so that Ctrl-C in the model's forward raises there as ever.
    Looking at the stack, and not at a flag, leaves no gap between the start of a `finally` and its first line.
    Signal handlers belong to the main thread; in any other thread this does nothing.

    Args:
        protected: the code objects.
        opened: code objects that a protected one may call, and inside of which signals are not held.
        patience: seconds after which a second signal is no longer held while the first one waits.

    Attributes:
        lost_patience: whether a signal has got through to a protected function for that.
    """

    def __init__(
        self, protected: frozenset[CodeType], opened: frozenset[CodeType] = frozenset(), patience: float = inf
    ) -> None:
        self._protected, self._opened, self._patience = protected, opened, patience
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._waits_since = inf
        self.lost_patience = False

    def install(self) -> None:
        """Puts this object's handler in the place of the caller's."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in HELD:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._receive)

    def release(self) -> None:
        """Gives the handlers back, then delivers what has waited; the caller's handlers may raise from here."""
        given_back = dict(self._handlers)
        self._give_back()
        self._deliver_to(given_back)

    def deliver(self) -> None:
        """Delivers what has waited, and goes on holding signals; the caller's handlers may raise from here."""
        self._deliver_to(self._handlers)

    def _deliver_to(self, handlers: dict[int, Handler]) -> None:
        while self._waiting:
            number, frame = self._waiting.pop()
            handlers[number](number, frame)

    def _give_back(self) -> None:
        try:
            for number, handler in list(self._handlers.items()):
                signal.signal(number, handler)
                del self._handlers[number]
        finally:
            if self._handlers:
                self._give_back()  # a handler that is back already has raised

    @property
    def waiting(self) -> bool:
        """Whether a signal has been held back."""
        return bool(self._waiting)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._is_protected(frame):
            self._handlers[number](number, frame)
        elif self._waiting and monotonic() - self._waits_since > self._patience:
            self.lost_patience = True
            self._waiting.clear()
            self._handlers[number](number, frame)
        else:
            self._waits_since = min(self._waits_since, monotonic()) if self._waiting else monotonic()
            self._waiting.append((number, frame))

    def _is_protected(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code not in self._opened:
            if frame.f_code in self._protected:
                return True
            frame = frame.f_back
        return False
