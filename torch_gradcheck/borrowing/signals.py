"""Ctrl-C held back: a signal that arrives inside a protected function waits until the function has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
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
    """

    def __init__(self, protected: frozenset[CodeType]) -> None:
        self._protected = protected
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []

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
        while self._waiting:
            number, frame = self._waiting.pop()
            given_back[number](number, frame)

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
        if self._is_protected(frame):
            self._waiting.append((number, frame))
        else:
            self._handlers[number](number, frame)

    def _is_protected(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code in self._protected:
                return True
            frame = frame.f_back
        return False
