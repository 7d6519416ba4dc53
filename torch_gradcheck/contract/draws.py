"""Whether a function draws random numbers: without a trace, which seeds a generator and puts its state back, too."""

from __future__ import annotations

from typing import Any

import torch

from torch_gradcheck.contract.outcome import attempted
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.contract.upstream import gradients_under
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.torch_internals.dispatch import DispatchMode


def draws_inside(trial: Trial) -> bool:
    """Whether forward or backward run an operation of torch that draws; they run once more."""
    watch = _DrawWatch()
    with watch:
        attempted(trial.run)
    return watch.found


def draws_in_backward(trial: Trial) -> bool:
    """Whether the backward runs an operation of torch that draws; it runs once more."""
    watch = _DrawWatch()
    with torch.enable_grad(), trial.regime():
        leaves = trial.fresh()
        outputs = trial.outputs(leaves)
        with watch:
            attempted(
                lambda: gradients_under(outputs, trial.cotangents(outputs), [*leaves, *objects_of(trial.parameters)])
            )
    return watch.found


class _DrawWatch(DispatchMode):
    """Sees whether an operation draws."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
