"""Models as they are trained: dropout, batch statistics, buffers that move, sums that stagnate, losses near zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_gradcheck.objective.nested import rebuilt


class Trained(NamedTuple):
    """What a training step runs on."""

    model: nn.Module
    loss_fn: Callable[..., Tensor]
    batch: tuple[Any, ...]


class Regime(NamedTuple):
    """How it computes: the dtype of weights and batch, and that of autocast, if any."""

    weights: torch.dtype
    autocast: torch.dtype | None = None

    @property
    def context(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None)


REGIMES = {
    "float64": Regime(torch.float64),
    "float32": Regime(torch.float32),
    "bfloat16": Regime(torch.bfloat16),
    "float16": Regime(torch.float16),
    "autocast bfloat16": Regime(torch.float32, torch.bfloat16),
    "autocast float16": Regime(torch.float32, torch.float16),
}

cross_entropy = nn.CrossEntropyLoss()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2, batch_first=True)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens))).flatten(0, 1)


class Noisy(nn.Module):
    """Draws of every kind: a float32 generator gives other numbers than a float64 one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.outer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        h = h * (torch.rand(h.shape) > 0.2).to(h.dtype) + 0.1 * torch.randn(h.shape).to(h.dtype)
        return self.outer(h * torch.bernoulli(torch.full_like(h, 0.8)))


def classes(rows: int, count: int = 3) -> Tensor:
    return torch.randint(0, count, (rows,))


def mlp() -> Trained:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    return Trained(model, cross_entropy, (torch.randn(12, 4), classes(12)))


def convolutional() -> Trained:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(75, 3)
    )
    return Trained(model, cross_entropy, (torch.randn(4, 1, 5, 5), classes(4)))


def recurrent() -> Trained:
    return Trained(Recurrent(), cross_entropy, (torch.randn(5, 6, 3), classes(5)))


def attentive() -> Trained:
    return Trained(Attentive(), cross_entropy, (torch.randint(0, 11, (3, 5)), classes(15, 11)))


def noisy() -> Trained:
    return Trained(Noisy(), cross_entropy, (torch.randn(9, 4), classes(9)))


def spectral() -> Trained:
    """Its forward moves the vectors of a power iteration, which it reads."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))
    return Trained(nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3)), cross_entropy, (torch.randn(6, 4), classes(6)))


def fitted() -> Trained:
    """A loss near zero: p − 1 has few digits left."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(10, 4), classes(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(200):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Trained(model, cross_entropy, (x, y))


def stagnating() -> Trained:
    """One row, looked up 2,000 times: in a low precision its gradient stops growing."""
    return Trained(nn.Embedding(3, 4), lambda rows: (rows + 1).square().mean(), (torch.zeros(2000, dtype=torch.int64),))


def underflowing() -> Trained:
    """Gradients below what float16 holds."""
    return Trained(nn.Linear(4, 2), lambda y, t: 1e-6 * (y - t).square().mean(), (torch.randn(6, 4), torch.randn(6, 2)))


def sparse() -> Trained:
    return Trained(nn.Embedding(7, 3, sparse=True), lambda y: y.square().mean(), (torch.randint(0, 7, (4, 5)),))


MODELS: dict[str, Callable[[], Trained]] = {
    function.__name__: function
    for function in (
        mlp, convolutional, recurrent, attentive, noisy, spectral, fitted, stagnating, underflowing, sparse
    )
}  # fmt: skip


def built(name: str, regime: Regime, seed: int = 0) -> Trained:
    """The model in training mode and its batch, in the regime's dtype."""
    torch.manual_seed(seed)
    model, loss_fn, batch = MODELS[name]()

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(regime.weights) if tensor.is_floating_point() else tensor

    return Trained(model.to(regime.weights).train(), loss_fn, rebuilt(batch, cast))


def backward(trained: Trained, regime: Regime, scale: float = 1.0) -> None:
    """What a step of a training loop does before the optimizer's."""
    inputs, *targets = trained.batch
    with regime.context:
        loss = trained.loss_fn(trained.model(inputs), *targets)
    (loss * scale).backward()
