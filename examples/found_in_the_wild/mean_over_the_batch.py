"""Shared parameters whose gradient is averaged over the batch, as qpth 0.0.18 does: too small by the size of the batch.

A layer solves one quadratic program an example, z* = argmin ½ zᵀQz + pᵀz with Az = b, where Q, p and A belong to the
layer and b comes with the example (Amos and Kolter, 2017, "OptNet"). The gradient of what the examples share is the
*sum* over them. qpth takes `.mean(0)`, so that with a loss that is a mean the factor 1/batch comes in twice.

python examples/found_in_the_wild/mean_over_the_batch.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_gradcheck import check_module


def solve_kkt(Q: Tensor, A: Tensor, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of [[Q, Aᵀ], [A, 0]] [x, y] = [upper, lower], a right side a row: (batch, n) and (batch, m)."""
    zeros = Q.new_zeros(len(A), len(A))
    kkt = torch.cat([torch.cat([Q, A.T], dim=1), torch.cat([A, zeros], dim=1)])
    solution = torch.linalg.solve(kkt, torch.cat([upper, lower], dim=1).T).T
    return solution[:, : len(Q)], solution[:, len(Q) :]


class QuadraticProgram(torch.autograd.Function):
    """z* of each example; the backward solves the same linear system once more."""

    @staticmethod
    def shared(gradients: Tensor) -> Tensor:
        """The gradient of what all examples share, from theirs."""
        return gradients.mean(0)

    @classmethod
    def forward(cls, ctx: Any, Q: Tensor, p: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """The solutions, of shape (batch, n), for Q (n × n), p (n), A (m × n) and b (batch × m)."""
        z, multipliers = solve_kkt(Q, A, -p.expand(len(b), -1), b)
        ctx.save_for_backward(Q, A, z, multipliers)
        return z

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """One gradient an example, then what `shared` makes of them for Q, p and A."""
        Q, A, z, multipliers = ctx.saved_tensors
        dz, dy = solve_kkt(Q, A, -grad, torch.zeros_like(multipliers))
        dQ = (dz[:, :, None] * z[:, None, :] + z[:, :, None] * dz[:, None, :]) / 2
        dA = dy[:, :, None] * z[:, None, :] + multipliers[:, :, None] * dz[:, None, :]
        return cls.shared(dQ), cls.shared(dz), cls.shared(dA), -dy


class SummedOverTheBatch(QuadraticProgram):
    """The repair."""

    @staticmethod
    def shared(gradients: Tensor) -> Tensor:
        """The gradient of what all examples share, from theirs."""
        return gradients.sum(0)


class OptNet(nn.Module):
    """Predicts the right sides b of a quadratic program with parameters of its own."""

    def __init__(self, program: type[QuadraticProgram]) -> None:
        super().__init__()
        self.program = program
        self.encoder = nn.Linear(5, 2)
        self.root, self.p, self.A = (nn.Parameter(torch.randn(shape)) for shape in [(4, 4), (4,), (2, 4)])

    def forward(self, x: Tensor) -> Tensor:
        """The solution for each row of x."""
        Q = self.root @ self.root.T + torch.eye(4)
        z: Tensor = self.program.apply(Q, self.p, self.A, self.encoder(x))  # type: ignore[no-untyped-call]
        return z


def problem(program: type[QuadraticProgram] = QuadraticProgram) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """Three examples."""
    torch.manual_seed(0)
    return OptNet(program), nn.MSELoss(reduction="sum"), (torch.randn(3, 5), torch.randn(3, 4))


def repaired() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """The same problem with sums."""
    return problem(SummedOverTheBatch)


if __name__ == "__main__":
    print(check_module(*problem()))
