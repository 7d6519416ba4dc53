"""A classifier of real digits for the command line, with dropout and weight decay, once right and once wrong.

torch-gradcheck examples/digits_mlp.py:problem           # exit status 0
torch-gradcheck examples/digits_mlp.py:broken_problem    # exit status 1, names hidden.weight and hidden.bias
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Problem = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]

WEIGHT_DECAY = 1e-2


class DigitsMLP(nn.Module):
    """64 pixels, one hidden layer with dropout, ten scores."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 32)
        self.activation = activation
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """The scores of a batch of flattened images."""
        return self.output(self.dropout(self.activation(self.hidden(images))))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy and weight decay; biases do not decay."""
        decay = self.hidden.weight.square().sum() + self.output.weight.square().sum()
        return nn.functional.cross_entropy(scores, labels) + WEIGHT_DECAY / 2 * decay


class WrongSwish(torch.autograd.Function):
    """x σ(x), whose backward forgets that σ(x) depends on x too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The activation, x σ(x)."""
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """The right factor is σ(x) + x σ(x) (1 − σ(x)); the second term is missing."""
        (x,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(x)


def problem() -> Problem:
    """A model whose gradients are right, its loss, and 50 real images."""
    return _problem(nn.functional.silu)


def broken_problem() -> Problem:
    """The same model with `WrongSwish`: the gradients of `hidden`, which lies before it, are wrong."""
    return _problem(WrongSwish.apply)


def _problem(activation: Callable[[Tensor], Tensor]) -> Problem:
    torch.manual_seed(0)
    model = DigitsMLP(activation)
    digits = load_digits()
    images = torch.tensor(digits.data[:50] / 16, dtype=torch.float32)
    return model, model.loss, (images, torch.tensor(digits.target[:50]))
