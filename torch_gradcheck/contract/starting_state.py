"""The state that every run of a function on trial starts from: its generators, and the arguments that are not on trial.

The loan puts back what an evaluation of J changes; a backward may change other things.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.contract.kept_tensors import KeptTensors


class StartingState:
    """Taken down before the first run.

    Args:
        tensors: the arguments that are not on trial, with their names.
    """

    def __init__(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        self._random = RandomState.of_everything()
        self._kept = KeptTensors()
        for name, tensor in tensors:
            self._kept.keep(name, tensor)

    def narrow_to_moved(self) -> None:
        """After the first run: forgets the generators that it has not drawn from."""
        self._random.narrow_to_moved()

    @property
    def has_draws(self) -> bool:
        """Whether the first run has drawn random numbers."""
        return not self._random.is_empty

    def restore(self) -> None:
        """Goes back to it."""
        self._random.restore()
        self._kept.put_back()
