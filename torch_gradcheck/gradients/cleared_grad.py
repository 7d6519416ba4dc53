"""Whether a closure that runs its own backward clears `.grad` first, as an optimizer that calls it twice needs."""

from __future__ import annotations

import torch

from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.reporting.words import listed

LARGE = 1e30
"""What `.grad` holds before: whatever is added to it, it stays about that."""


def on_added(objective: Objective, theta: Theta) -> str:
    """The note on parameters whose `.grad` a closure does not clear; "" where it clears all."""
    added = [repr(name) for name in added_to(objective, theta)]
    if not added:
        return ""
    return (
        f"{objective.words.runs_backward} does not clear .grad of {len(added)} of {len(theta.checked)} tensors "
        f"({listed(added)}), as zero_grad() does: where an optimizer calls it more than once a step, as LBFGS does, "
        "gradients add up. On trial was what one call leaves where .grad was empty"
    )


def added_to(objective: Objective, theta: Theta) -> list[str]:
    """The names of the parameters to whose `.grad` J adds, running its own backward; none where it raises then.

    Args:
        objective: J.
        theta: its parameters, which are left without `.grad`.
    """
    entries = [theta[position] for position in theta.checked]
    try:
        with torch.enable_grad(), objective.evaluation(), objective.without_its_steps():
            for each in entries:
                each.parameter.grad = torch.full_like(each.parameter, LARGE, requires_grad=False)
            objective.compute()
            return [each.name for each in entries if _is_large(each.parameter.grad)]
    except Exception:  # the user's own, such as a test of the norm: nothing is known then
        return []
    finally:
        for each in entries:
            each.parameter.grad = None


def _is_large(grad: torch.Tensor | None) -> bool:
    return grad is not None and bool((grad.abs() > LARGE / 2).any())
