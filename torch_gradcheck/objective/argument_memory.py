"""The memory that a function finds its arguments in: that of the caller's own, copied anew for every call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import Function

from torch_gradcheck.borrowing.layout_copies import has_layout, has_natural_layout, layout_copies


@dataclass(frozen=True)
class ArgumentMemory:
    """Where the caller's arguments lie, for a function that is called on them as they are.

    A kernel may take its arguments for contiguous, aligned or apart from each other, and write to them.

    Attributes:
        originals: the caller's tensors by the id of what stands for each among the arguments of a call.
    """

    originals: Mapping[int, torch.Tensor] = field(default_factory=dict)

    def fresh(self, on_trial: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """What a call gets in place of its arguments, by id.

        An argument on trial that lies in memory as any new tensor does is the leaf itself, which the loan puts back
        after the call; all other ones are new tensors.

        Args:
            on_trial: the leaves in the places of those on trial, by the id of what they stand for.
        """
        keys = [key for key in self.originals if key not in on_trial or not self._is_ordinary(key)]
        copies = layout_copies([self.originals[key] for key in keys])
        return {**on_trial, **{key: _of_leaf(on_trial.get(key), copy) for key, copy in zip(keys, copies, strict=True)}}

    def _is_ordinary(self, key: int) -> bool:
        """Whether the memory of an argument is what a clone of it has, and no other argument lies in it."""
        tensor = self.originals[key]
        if not has_layout(tensor):
            return True
        others = [each for other, each in self.originals.items() if other != key and has_layout(each)]
        storage = tensor.untyped_storage().data_ptr()
        return has_natural_layout(tensor) and all(each.untyped_storage().data_ptr() != storage for each in others)


def _of_leaf(leaf: torch.Tensor | None, copy: torch.Tensor) -> torch.Tensor:
    return copy if leaf is None else _LaidOut.apply(leaf, [copy])  # type: ignore[no-untyped-call]


class _LaidOut(Function):
    """The numbers of a leaf in other memory, which is new, and is handed in a list: no argument of autograd's."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, memory: list[torch.Tensor]) -> torch.Tensor:  # noqa: ARG004
        return memory[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ARG004
        return gradient, None
