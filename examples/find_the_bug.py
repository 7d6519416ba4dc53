"""A small transformer that learns, and whose LayerNorm has a subtle mistake in its backward: where is it?

Run it: `python examples/find_the_bug.py`. It prints the report of the model as it is written, which names the module,
the autograd.Function in it and the input whose gradient is wrong, then one line on the model once it is mended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_module

EPSILON = 1e-5


class FusedLayerNorm(torch.autograd.Function):
    """y = (x − mean) / σ · w + b over the last axis, with a backward of its own, as fused kernels have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mended: bool) -> Tensor:
        """Saves what the backward needs."""
        sigma = torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + EPSILON)
        normal = (x - x.mean(-1, keepdim=True)) / sigma
        ctx.save_for_backward(normal, sigma, weight)
        ctx.mended = mended
        return normal * weight + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dx = (ĝ − mean(ĝ) − n · mean(ĝ · n)) / σ, where ĝ = g · w and n = (x − mean) / σ."""
        normal, sigma, weight = ctx.saved_tensors
        g = grad * weight
        # The mistake: the last term takes g for ĝ, the gradient before its multiplication by the weight. The two are
        # the same as long as all weights are 1, as they are when training starts.
        projection = (g if ctx.mended else grad) * normal
        dx = (g - g.mean(-1, keepdim=True) - normal * projection.mean(-1, keepdim=True)) / sigma
        others = tuple(range(grad.dim() - 1))
        return dx, (grad * normal).sum(others), grad.sum(others), None


class LayerNorm(nn.Module):
    """nn.LayerNorm by way of the function above."""

    def __init__(self, width: int, mended: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mended = mended

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        apply: Callable[..., Tensor] = FusedLayerNorm.apply
        return apply(x, self.weight, self.bias, self.mended)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The second norm is the hand-written one."""

    def __init__(self, width: int, mended: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), LayerNorm(width, mended)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        normal = self.norm1(x)
        x = x + self.attention(normal, normal, normal, need_weights=False)[0]
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class Transformer(nn.Module):
    """Predicts the next of a few tokens."""

    def __init__(self, tokens: int = 5, width: int = 4, mended: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(Block(width, mended), Block(width, True))
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, (batch, tokens, length) as nn.CrossEntropyLoss takes them."""
        logits: Tensor = self.head(self.blocks(self.embedding(tokens)))
        return logits.mT


def counting(batch: int = 8, length: int = 6, tokens: int = 5) -> tuple[Tensor, Tensor]:
    """Sequences that count up from a random start, and what comes next at each place."""
    first = torch.randint(0, tokens, (batch, 1))
    sequence = (first + torch.arange(length + 1)) % tokens
    return sequence[:, :-1], sequence[:, 1:]


def trained(model: Transformer, steps: int = 30) -> list[float]:
    """The losses of a short training: with the mistake it goes well, too."""
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(steps):
        inputs, targets = counting()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def report_after_training(mended: bool) -> tuple[list[float], Report]:
    """The losses of a model's training and the check of its gradients afterwards."""
    torch.manual_seed(0)
    model = Transformer(mended=mended)
    losses = trained(model)
    return losses, check_module(model, nn.CrossEntropyLoss(), counting())


def main() -> None:
    """Trains and checks the model with the mistake, and the one without."""
    losses, report = report_after_training(mended=False)
    print(f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps, and yet:\n")
    print(report)
    _, mended = report_after_training(mended=True)
    print(f"\nmended: {mended!r}")


if __name__ == "__main__":
    main()
