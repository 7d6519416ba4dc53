"""The autocast in force where a check is called: a candidate runs under it, as it would in the training step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch

from torch_gradcheck.against_reference.runs.computation import Forward
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.training_step.forward_state import autocast_now


class CallersAutocast:
    """Taken down outside of a loan, which turns autocast off.

    The candidate computes under it, and the reference where it shows what rounding does. In float64 there is none.
    What it casts is not kept from one operation to the next: it would be kept from one run to the next.
    """

    def __init__(self) -> None:
        self._found = {device: dtype for device, (enabled, dtype) in autocast_now().items() if enabled}

    def over(self, forward: Callable[[], Forward]) -> Callable[[], Forward]:
        """The forward under it; the backward is under none, as in a training step."""
        if not self._found:
            return forward

        def under_autocast() -> Forward:
            with self.on():
                return forward()

        return under_autocast

    def on(self) -> AbstractContextManager[object]:
        """A block in which it is in force."""
        stack = ExitStack()
        for device, dtype in self._found.items():
            stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
        return stack

    @property
    def note(self) -> str:
        """The note on it; "" where none is in force."""
        if not self._found:
            return ""
        dtypes = " and ".join(sorted({name_of(dtype) for dtype in self._found.values()}))
        return (
            f"checked under the autocast to {dtypes} that is in force: the candidate runs under it, and the reference "
            "where it shows what rounding does"
        )
