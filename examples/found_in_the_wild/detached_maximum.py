"""A maximum taken of the detached model, as deepwave 0.1.0 does: the gradient of the largest entry is wrong, no other.

A wave runs through a medium, and is damped at its borders so that nothing is reflected. The damping is proportional to
the largest velocity of the medium, as in any perfectly matched layer (Collino and Tsogka, 2001), and that velocity is a
parameter like the others. With `.detach()` the damping is a constant for autograd, and one entry lacks a part.

python examples/found_in_the_wild/detached_maximum.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_gradcheck import check_module


class Wave(nn.Module):
    """The scalar wave equation in one dimension, by finite differences: unknown is the velocity at each point."""

    profile: Tensor

    def __init__(self, points: int = 10, border: int = 3, detached: bool = True) -> None:
        super().__init__()
        self.velocity = nn.Parameter(1 + 0.5 * torch.rand(points))
        self.detached = detached
        inside = torch.arange(points)
        depth = torch.maximum(border - inside, inside - (points - 1 - border)).clamp(min=0) / border
        self.register_buffer("profile", depth**2)

    def damping(self) -> Tensor:
        """σ at each point: grows quadratically into the border, up to a multiple of the largest velocity."""
        velocity = self.velocity.detach() if self.detached else self.velocity
        return 3 * velocity.max() * self.profile

    def forward(self, source: Tensor, dt: float = 0.3) -> Tensor:
        """The field near the left end after each time step, of a source (steps,) near the right end."""
        sigma, (before, now) = self.damping(), self.velocity.new_zeros(2, len(self.velocity))
        emitter, records = torch.eye(len(now))[-3], []
        for amplitude in source:
            curvature = nn.functional.pad(now[2:] - 2 * now[1:-1] + now[:-2], (1, 1))
            force = self.velocity**2 * curvature + amplitude * emitter
            before, now = now, (2 * now - (1 - sigma * dt / 2) * before + dt**2 * force) / (1 + sigma * dt / 2)
            records.append(now[2])
        return torch.stack(records)


def problem(detached: bool = True) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """Sixteen steps of a short pulse, and a recording to be explained."""
    torch.manual_seed(0)
    t = torch.arange(16) * 0.3
    return Wave(detached=detached), nn.MSELoss(reduction="sum"), (torch.exp(-((t - 1) ** 2)), torch.zeros(16))


def repaired() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """The same problem, the largest velocity being part of the graph."""
    return problem(detached=False)


if __name__ == "__main__":
    print(check_module(*problem()))
