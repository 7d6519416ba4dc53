"""Whether a function draws random numbers without a trace: it seeds a generator and puts its state back."""

from __future__ import annotations

from typing import Any

import torch

from torch_gradcheck.contract.outcome import attempted
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.torch_internals.dispatch import DispatchMode


def draws_inside(trial: Trial) -> bool:
    """Whether forward or backward run an operation of torch that draws; they run once more."""
    watch = _DrawWatch()
    with watch:
        attempted(trial.run)
    return watch.found


class _DrawWatch(DispatchMode):
    """Sees whether an operation draws."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
