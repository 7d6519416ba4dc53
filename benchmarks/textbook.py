"""The gradient check as a textbook has it: the loop that everybody writes, which the benchmarks compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def textbook_check(model: nn.Module, J: Callable[[], Tensor], eps: float = 1e-7) -> float:
    """‖approx − grad‖₂ / (‖approx‖₂ + ‖grad‖₂) over the whole θ of a model in float64.

    Args:
        model: in float64, in the mode it shall be checked in; its `.grad` is overwritten.
        J: the loss of the model on a fixed batch.
        eps: the step ε.
    """
    model.zero_grad()
    J().backward()
    grad = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    approx = textbook_gradient(model.parameters(), J, eps)
    return float((approx - grad).norm() / (approx.norm() + grad.norm()))


@torch.no_grad()
def textbook_gradient(parameters: Iterable[Tensor], J: Callable[[], Tensor], eps: float = 1e-7) -> Tensor:
    """(J(θ + ε) − J(θ − ε)) / 2ε for every coordinate of θ, flattened; two evaluations of J for each."""
    approx = []
    for parameter in parameters:
        theta = parameter.view(-1)
        for i in range(theta.numel()):
            original = theta[i].item()
            theta[i] = original + eps
            J_plus = J().item()
            theta[i] = original - eps
            J_minus = J().item()
            theta[i] = original
            approx.append((J_plus - J_minus) / (2 * eps))
    return torch.tensor(approx, dtype=torch.float64)
