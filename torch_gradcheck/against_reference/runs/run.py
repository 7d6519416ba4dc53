"""One run of a lent computation, forward and backward: the numbers of its outputs and of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from torch_gradcheck.against_reference.runs.computation import Forward
from torch_gradcheck.borrowing.loan import Borrowed
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.objective.objective import evaluation_of


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        outputs: by name, without their graphs.
        gradients: those that were asked for, in order; None where the backward left nothing.
        refusal: why it was computed in float64, and rounded step by step to the dtype that it stands for; "" where it
            was computed in that.
    """

    outputs: Mapping[str, torch.Tensor]
    gradients: Sequence[torch.Tensor | None]
    refusal: str = ""


def ran(
    forward: Callable[[], Forward],
    parts: Sequence[Sequence[torch.Tensor]],
    borrowed: Borrowed,
    mode: AbstractContextManager[object] | None = None,
) -> Run:
    """The run of a lent computation from its first state, to which it is put back.

    Args:
        forward: of the computation.
        parts: for each gradient that is wanted the lent tensors whose gradients add up to it, mostly one.
        borrowed: resets what the run changes.
        mode: in force during forward and backward; None for none.
    """
    with torch.enable_grad(), evaluation_of(borrowed), mode or nullcontext():
        return run_of(forward, parts)


def run_of(forward: Callable[[], Forward], parts: Sequence[Sequence[torch.Tensor]]) -> Run:
    """The run of a lent computation, inside of an evaluation; `parts` as in `ran`."""
    outputs, losses = forward()
    kept = {name: output.detach().clone() for name, output in outputs}  # a backward may write over them
    leaves = list(dict.fromkeys([leaf for group in parts for leaf in group]))
    found = dict(zip(leaves, gradients_of(losses, leaves), strict=True))
    return Run(kept, [_sum_of([found[leaf] for leaf in group]) for group in parts])


def _sum_of(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The sum of those that there are, in memory of its own; None of none."""
    there = [each.detach() for each in gradients if each is not None]
    return sum(there[1:], there[0].clone()) if there else None
