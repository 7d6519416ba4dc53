"""Parameters that get their whole gradient in training mode only, as in the UNAF of zuko 1.6.0.

A monotonic network is the integral of a positive one, f(x) = ∫₀ˣ g(u) du (Wehenkel and Louppe, 2019), by Gauss-Legendre
quadrature in a Function of its own. The parameters of g get a gradient through the integral only where they are among
the arguments of that Function, and the module passes them in training mode only. Whoever fine-tunes in eval mode trains
with the rest of the gradient, that through log g(x), and the loss goes down all the same.

python examples/found_in_the_wild/only_while_training.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module

Integrand = Callable[[Tensor], Tensor]


def quadrature(g: Integrand, x: Tensor, n: int = 8) -> Tensor:
    """∫₀ˣ g(u) du for each entry of x, by n points of Gauss and Legendre."""
    nodes, weights = (torch.as_tensor(values, dtype=x.dtype) for values in np.polynomial.legendre.leggauss(n))
    return x / 2 * (weights * g(x[..., None] * (nodes + 1) / 2)).sum(-1)


class Integral(torch.autograd.Function):
    """The quadrature; `phi` are the tensors that g depends on, and only they get a gradient."""

    @staticmethod
    def forward(ctx: Any, g: Integrand, x: Tensor, *phi: Tensor) -> Tensor:
        """The integrals, in the shape of x."""
        ctx.g = g
        ctx.save_for_backward(x, *phi)
        return quadrature(g, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """g(x) for x, and the derivative of the quadrature for `phi`."""
        x, *phi = ctx.saved_tensors
        with torch.enable_grad():
            area = quadrature(ctx.g, x)
        return None, ctx.g(x) * grad, *(torch.autograd.grad(area, phi, grad) if phi else ())


class MonotonicFlow(nn.Module):
    """log p(x) of data that f makes normal: log N(f(x)) + log f'(x), where f' is g."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.integrand = nn.Sequential(nn.Linear(1, 8), nn.ELU(), nn.Linear(8, 1))
        self.always = always

    def g(self, u: Tensor) -> Tensor:
        """The integrand, positive."""
        return torch.exp(torch.tanh(self.integrand(u[..., None])[..., 0]))

    def forward(self, x: Tensor) -> Tensor:
        """The log-density of each entry of x, but for a constant."""
        phi = tuple(self.parameters()) if self.training or self.always else ()
        z: Tensor = Integral.apply(self.g, x, *phi)  # type: ignore[no-untyped-call]
        return self.g(x).log() - z**2 / 2


def negative_mean(log_density: Tensor) -> Tensor:
    """The loss of maximum likelihood."""
    return -log_density.mean()


def problem(always: bool = False) -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]:
    """A sample of 12 numbers."""
    torch.manual_seed(0)
    return MonotonicFlow(always), negative_mean, torch.randn(12)


def repaired() -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]:
    """The same problem, the parameters being passed in every mode."""
    return problem(always=True)


if __name__ == "__main__":
    print(check_module(*problem()))
