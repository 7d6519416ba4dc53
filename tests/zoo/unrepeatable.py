"""Backwards that are not one function, or that are up to rounding: what spoils a right gradient, and where it does."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ENTROPY = random.SystemRandom()
"""Draws from the system: there is no state that could be put back between two runs."""

Spoil = Callable[[Tensor], Tensor]


def intact(gradient: Tensor) -> Tensor:
    """The right gradient."""
    return gradient


def by_entropy(gradient: Tensor) -> Tensor:
    """Off by 1 % at random, by the entropy of the system."""
    return gradient * (1 + 0.01 * _numbers(ENTROPY, gradient))


def noisy(size: float = 0.01) -> Spoil:
    """Off by `size` at random: each call otherwise, and each test alike."""
    calls = count()
    return lambda gradient: gradient * (1 + size * _numbers(random.Random(next(calls)), gradient))


def _numbers(generator: random.Random, like: Tensor) -> Tensor:
    """Of both signs and of sizes between 0.5 and 1.5, in the shape of a tensor."""
    numbers = [generator.choice((-1.0, 1.0)) * generator.uniform(0.5, 1.5) for _ in range(like.numel())]
    return torch.tensor(numbers).to(like).view_as(like)


def drawn(gradient: Tensor) -> Tensor:
    """Right, and computed by random numbers of torch, whose state is the same at every run."""
    return gradient * (torch.rand_like(gradient) + 1) * 0 + gradient


def five_percent_too_long(gradient: Tensor) -> Tensor:
    """Wrong, and the same every time."""
    return 1.05 * gradient


def first_doubled() -> Spoil:
    """Doubled at the first call only, as by an autotuner that runs an accumulating kernel twice."""
    calls: list[None] = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(None)
        return 2 * gradient if len(calls) == 1 else gradient

    return spoil


def every_second_doubled() -> Spoil:
    """Doubled at every second call."""
    calls: list[None] = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(None)
        return gradient if len(calls) % 2 else 2 * gradient

    return spoil


def adds_up() -> Spoil:
    """Accumulated in a buffer that nobody clears."""
    buffers: dict[tuple[int, ...], Tensor] = {}

    def spoil(gradient: Tensor) -> Tensor:
        shape = tuple(gradient.shape)
        buffers[shape] = buffers.get(shape, torch.zeros_like(gradient)) + gradient
        return buffers[shape]

    return spoil


def summed_in_any_order() -> Spoil:
    """Right up to rounding: each entry is a sum of many terms in an order of its own, as by the atomics of a GPU."""
    calls = count()
    parts = torch.linspace(-1.0, 1.3, 64, dtype=torch.float64)
    parts = parts / parts.sum()

    def spoil(gradient: Tensor) -> Tensor:
        order = torch.tensor(random.Random(next(calls)).sample(range(64), 64))
        total = torch.zeros_like(gradient)
        for part in parts[order]:
            total = total + part.to(gradient.dtype) * gradient
        return total

    return spoil


def summed_in_float32(gradient: Tensor) -> Tensor:
    """The same by a kernel that adds in float32 and that a check does not see: it computes by numpy."""
    order = np.random.default_rng(ENTROPY.getrandbits(32)).permutation(64)
    parts = np.linspace(-1.0, 1.3, 64)
    parts = (parts / parts.sum())[order].astype(np.float32)
    terms = gradient.detach().numpy().astype(np.float32)
    total = np.zeros_like(terms)
    for part in parts:
        total = total + part * terms
    return torch.from_numpy(total.astype(np.float64)).to(gradient)


def swish(spoil: Spoil) -> type[torch.autograd.Function]:
    """A new Function with a right backward, whose gradient goes through `spoil`."""

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            s = torch.sigmoid(x)
            return spoil(grad * (s + x * s * (1 - s)))

    return Swish


class Act(nn.Module):
    """Applies a Function of its own."""

    def __init__(self, spoil: Spoil) -> None:
        super().__init__()
        self.function = swish(spoil)

    def forward(self, x: Tensor) -> Tensor:
        """The Function of x."""
        result: Tensor = self.function.apply(x)
        return result


class Block(nn.Module):
    """A residual block whose activation is spoilt."""

    def __init__(self, spoil: Spoil, width: int = 6) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(width, width), Act(spoil)

    def forward(self, x: Tensor) -> Tensor:
        """x and what the block adds to it."""
        result: Tensor = x + self.act(self.linear(x))
        return result


def blocks(*spoils: Spoil) -> nn.Sequential:
    """A net of blocks, one a spoil, between two layers: parameters before, in and after each."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *map(Block, spoils), nn.Linear(6, 3))


def batch() -> tuple[Tensor, Tensor]:
    """For these nets."""
    torch.manual_seed(1)
    return torch.randn(8, 4), torch.randint(0, 3, (8,))
