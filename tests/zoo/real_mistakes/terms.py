"""Terms that are forgotten, branches that are scaled, and losses that forget their targets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo.planted.row import (
    FRONT,
    Planted,
    Problem,
    plant,
)
from tests.zoo.real_mistakes.layers import softmax
from tests.zoo.real_mistakes.models import NETWORK, by_hand, network, tokens, upstream


def terms() -> Iterator[Planted]:
    yield upstream(
        "skip inside forgotten", "missing_term", lambda x: x + x.sin().cumsum(-1), lambda g, x: (cumsum(g) * x.cos(),)
    )
    yield upstream(
        "skip inside counted twice",
        "missing_term",
        lambda x: x + x.sin().cumsum(-1),
        lambda g, x: (2 * g + cumsum(g) * x.cos(),),
    )
    yield upstream(
        "half of the gradient in a branch",
        "propagated",
        lambda x: x.sin().cumsum(-1),
        lambda g, x: (cumsum(g) * x.cos() / 2,),
        skip=True,
    )
    yield upstream("sign of a branch", "propagated", torch.sin, lambda g, x: (-g * x.cos(),), skip=True)
    yield upstream("no gradient from a branch", "propagated", torch.sin, lambda g, x: (torch.zeros_like(g),), skip=True)
    yield tokens(
        "branch clipped", "propagated", torch.sin, lambda g, x: ((g * x.cos()).clamp(-0.005, 0.005),), skip=True
    )
    scale = torch.tensor([[0.5], [2.0], [1.5], [3.0], [0.25]]).double()
    yield tokens("tokens reversed", "propagated", lambda x: x.flip(1), lambda g, x: (g,), wrong=FRONT[:1])
    yield upstream(
        "weights of samples forgotten",
        "propagated",
        lambda x: x.sin().cumsum(-1) * scale,
        lambda g, x: (cumsum(g) * x.cos(),),
    )
    yield upstream("flip not undone", "permuted", lambda x: x.flip(-1), lambda g, x: (g,))
    yield upstream("cumulative sum not reversed", "propagated", lambda x: x.cumsum(-1), lambda g, x: (g.cumsum(-1),))
    yield upstream("rotation not undone", "propagated", lambda x: x @ _TURN.T, lambda g, x: (g @ _TURN.T,))


_TURN = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double())[0]


def cumsum(g: Tensor) -> Tensor:
    """The backward of a cumulative sum along the last axis."""
    return g.flip(-1).cumsum(-1).flip(-1)


def losses() -> Iterator[Planted]:
    yield plant("squared error without target", _without_target, NETWORK, "missing_term", "loss_fn")
    yield plant("cross-entropy without target", _class_forgotten, NETWORK, "missing_term", "loss_fn")
    yield plant("cross-entropy, smoothing forgotten", _smoothing_forgotten, NETWORK, "missing_term", "loss_fn")
    yield plant("huber, never linear", _never_linear, NETWORK, "slope", "loss_fn")
    yield plant("logistic loss, weight of positives forgotten", _positives_forgotten, NETWORK, "slope", "loss_fn")


def _without_target(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return 2 * g * y / y.numel(), None

    return network(by_hand(F.mse_loss, backward, wrong), torch.randn(6, 3))


def _class_forgotten(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * softmax(y) / len(y), None

    return network(by_hand(F.cross_entropy, backward, wrong), torch.randint(0, 3, (6,)))


def _smoothing_forgotten(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def forward(y: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(y, t, label_smoothing=0.2)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (softmax(y) - F.one_hot(t, 3)) / len(y), None

    return network(by_hand(forward, backward, wrong), torch.randint(0, 3, (6,)))


def _never_linear(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def forward(y: Tensor, t: Tensor) -> Tensor:
        return F.huber_loss(y, t, delta=0.5)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (y - t) / y.numel(), None

    return network(by_hand(forward, backward, wrong), torch.randn(6, 3))


def _positives_forgotten(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def forward(y: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(y, t, pos_weight=torch.tensor([3.0, 2.0, 4.0]).to(y))

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (torch.sigmoid(y) - t) / y.numel(), None

    return network(by_hand(forward, backward, wrong), torch.randint(0, 2, (6, 3)).float())
