"""Parameters that get their whole gradient in training mode only, as in the UNAF of zuko 1.6.0.

A monotonic network is the integral of a positive one, f(x) = ∫₀ˣ g(u) du (Wehenkel and Louppe, 2019), by Gauss-Legendre
quadrature in a Function of its own. The parameters of g get a gradient through the integral only where they are among
the arguments of that Function, and the module passes them in training mode only. Whoever fine-tunes in eval mode trains
with the rest of the gradient, that through log g(x), and the loss goes down all the same.

python examples/found_in_the_wild/only_while_training.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module

Integrand = Callable[[Tensor], Tensor]


def quadrature(g: Integrand, x: Tensor, n: int = 8) -> Tensor:
    """∫₀ˣ g(u) du for each entry of x (batch,), by n points of Gauss and Legendre."""
    nodes, weights = (torch.as_tensor(values, dtype=x.dtype) for values in np.polynomial.legendre.leggauss(n))
    area: Tensor = x / 2 * torch.tensordot(weights, g(torch.outer((nodes + 1) / 2, x)), dims=1)
    return area


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
    """log p(x | c) of data that f makes normal: log N(f(x)) + log g(x), with f' = g and a signal from c."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.conditioner = nn.Linear(3, 2)
        self.integrand = nn.Sequential(nn.Linear(3, 8), nn.ELU(), nn.Linear(8, 1))
        self.always = always

    def g(self, signal: Tensor, u: Tensor) -> Tensor:
        """The integrand, positive: of u (batch,) or (points, batch), and signals (batch, 2)."""
        inputs = torch.cat([u[..., None], signal.expand(*u.shape, -1)], dim=-1)
        return torch.exp(torch.tanh(self.integrand(inputs).squeeze(-1)))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """The log-density of each entry of x (batch,), given a row of the context (batch, 3), but for a constant."""
        signal = self.conditioner(context)
        phi = (signal, *self.integrand.parameters()) if self.training or self.always else (signal,)
        g = partial(self.g, signal)
        z: Tensor = Integral.apply(g, x, *phi)  # type: ignore[no-untyped-call]
        return g(x).log() - z**2 / 2


def negative_mean(log_density: Tensor) -> Tensor:
    """The loss of maximum likelihood."""
    return -log_density.mean()


Problem = tuple[nn.Module, Callable[[Tensor], Tensor], tuple[tuple[Tensor, Tensor]]]


def problem(always: bool = False) -> Problem:
    """Twelve numbers, each with a context."""
    torch.manual_seed(0)
    return MonotonicFlow(always), negative_mean, ((torch.randn(12), torch.randn(12, 3)),)


def repaired() -> Problem:
    """The same problem, the parameters being passed in every mode."""
    return problem(always=True)


if __name__ == "__main__":
    print(check_module(*problem()))
