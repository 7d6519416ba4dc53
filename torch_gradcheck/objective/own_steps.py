"""Steps of an optimizer inside of J: a loss that is computed after one is that of other weights than θ."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torch_gradcheck.borrowing.tensor_copies import write_back
from torch_gradcheck.torch_internals.tensors import keeping_versions


class StepWatch:
    """Notes which optimizers move tensors on trial, while its block runs.

    A class and not a generator, which an interrupt could leave behind.

    Args:
        leaves: the tensors on trial.
        takes_back: each step is taken back at once, unseen by autograd, so that a backward behind it is that before it.

    Attributes:
        stepped: the classes of the optimizers.
    """

    def __init__(self, leaves: Sequence[torch.Tensor], takes_back: bool = False) -> None:
        self._leaves, self._takes_back = leaves, takes_back
        self._under_way: list[tuple[list[torch.Tensor], AbstractContextManager[object]]] = []
        self.stepped: list[str] = []

    def __enter__(self) -> StepWatch:
        hooks = [register_optimizer_step_post_hook(self._after_step)]
        if self._takes_back:
            hooks.append(register_optimizer_step_pre_hook(self._before_step))
        self._hooks = hooks
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, *_: Any) -> None:
        versions = keeping_versions(self._leaves)
        versions.__enter__()
        self._under_way.append(([leaf.detach().clone() for leaf in self._leaves], versions))

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._under_way:  # an optimizer may step another one inside of its own step
            firsts, versions = self._under_way.pop()
            for leaf, first in zip(self._leaves, firsts, strict=True):
                write_back(leaf, first)
            versions.__exit__(None, None, None)
        moved = {id(each) for group in optimizer.param_groups for each in group["params"]}
        if moved.isdisjoint([id(leaf) for leaf in self._leaves]):
            return
        if type(optimizer).__name__ not in self.stepped:
            self.stepped.append(type(optimizer).__name__)


def after_its_step(code: str, optimizers: Sequence[str]) -> str:
    """Why such a loss is refused, of which `code` steps the optimizers."""
    return (
        f"{code} steps {' and '.join(optimizers)}, and its loss is computed from the weights after that step: it is no "
        "function of the weights whose gradient it is asked for. Return the loss from before the step, or leave step() "
        "out."
    )
