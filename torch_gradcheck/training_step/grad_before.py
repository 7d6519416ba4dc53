"""What `.grad` of tensors of the batch held before the step: nobody has to zero what no optimizer reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.objective.variables import Variable
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.training_step.step import TrainingStep


class GradBefore:
    """Which tensors of the batch had a `.grad` when the forward of a step began.

    Args:
        variables: of the loss.
        step: what is known of the training step.

    Attributes:
        held: those that had one; what a right step adds to it cannot be told from it.
    """

    def __init__(self, variables: Sequence[Variable], step: TrainingStep) -> None:
        known = [
            (each, step.held_grad(each.tensor if each.stands_for is None else each.stands_for))
            for each in variables
            if each.role is Role.INPUT and each.has_grad
        ]
        self.held = [each for each, held in known if held]
        self._unknown = {id(each.tensor) for each, held in known if held is None}

    def unknown(self, tensor: torch.Tensor) -> bool:
        """Whether nobody saw if this tensor of the batch had one."""
        return id(tensor) in self._unknown

    @property
    def note(self) -> str:
        """Words on what is not judged; "" where nothing is left out."""
        if not self.held:
            return ""
        return (
            f".grad of {listed([each.name for each in self.held])} is not judged: it held what an earlier backward "
            "left when the forward of this step began (set it to None before, to have it judged)"
        )
