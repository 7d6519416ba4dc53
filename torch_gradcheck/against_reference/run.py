"""One run of a lent computation, forward and backward: the numbers of its outputs and of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from torch_gradcheck.against_reference.computation import Forward
from torch_gradcheck.borrowing.loan import Borrowed
from torch_gradcheck.gradients.accumulation import gradients_of


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        outputs: by name, without their graphs.
        gradients: of the tensors that were asked for, in order; None where the backward left nothing.
    """

    outputs: Mapping[str, torch.Tensor]
    gradients: Sequence[torch.Tensor | None]


def ran(
    forward: Callable[[], Forward],
    leaves: Sequence[torch.Tensor],
    borrowed: Borrowed,
    mode: AbstractContextManager[object] | None = None,
) -> Run:
    """The run of a lent computation from its first state, to which it is put back.

    Args:
        forward: of the computation.
        leaves: the lent tensors whose gradients are wanted.
        borrowed: resets what the run changes.
        mode: in force during forward and backward; None for none.
    """
    borrowed.before_evaluation()
    try:
        with torch.enable_grad(), mode or nullcontext():
            return run_of(forward, leaves)
    finally:
        borrowed.after_evaluation()


def run_of(forward: Callable[[], Forward], leaves: Sequence[torch.Tensor]) -> Run:
    """The run of a lent computation, inside of an evaluation."""
    outputs, losses = forward()
    kept = {name: output.detach().clone() for name, output in outputs}  # a backward may write over them
    gradients = gradients_of(losses, leaves)
    return Run(kept, [None if each is None else each.detach().clone() for each in gradients])
