"""Steps of an optimizer inside of J: a loss that is computed after one is that of other weights than θ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from torch_gradcheck.borrowing.tensor_copies import write_back


class StepWatch:
    """Notes which optimizers move tensors on trial, while its block runs.

    A class and not a generator, which an interrupt could leave behind.

    Args:
        leaves: the tensors on trial.
        first: what each of them is put back to right after such a step; None leaves it moved.

    Attributes:
        stepped: the classes of the optimizers.
    """

    def __init__(self, leaves: Sequence[torch.Tensor], first: Sequence[torch.Tensor] | None = None) -> None:
        self._leaves, self._first = leaves, first
        self.stepped: list[str] = []

    def __enter__(self) -> StepWatch:
        self._handle = register_optimizer_step_post_hook(self._after_step)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moved = {id(each) for group in optimizer.param_groups for each in group["params"]}
        if moved.isdisjoint([id(leaf) for leaf in self._leaves]):
            return
        if type(optimizer).__name__ not in self.stepped:
            self.stepped.append(type(optimizer).__name__)
        for leaf, first in zip(self._leaves, self._first or (), strict=False):
            write_back(leaf, first)


def after_its_step(code: str, optimizers: Sequence[str]) -> str:
    """Why such a loss is refused, of which `code` steps the optimizers."""
    return (
        f"{code} steps {' and '.join(optimizers)}, and its loss is computed from the weights after that step: it is no "
        "function of the weights whose gradient it is asked for. Return the loss from before the step, or leave step() "
        "out."
    )
