"""Mistakes in places that are hard to find: deep inside, shared, in a parent's forward, in company, two at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.losses import squared_error
from tests.zoo.planted.row import HandWritten, Planted, Problem, plant


class Tanh(nn.Module):
    """tanh; wrong: its slope is not squared, or its gradient is off by a factor."""

    def __init__(self, wrong: bool, factor: float | None = None) -> None:
        super().__init__()
        self.wrong, self.factor = wrong, factor

    def forward(self, x: Tensor) -> Tensor:
        if not self.wrong:
            return torch.tanh(x)
        return HandWritten.apply(torch.tanh, self.backward, x)

    def backward(self, g: Tensor, x: Tensor) -> tuple[Tensor]:
        y = torch.tanh(x)
        return (g * (1 - y) if self.factor is None else self.factor * g * (1 - y**2),)


class Lost(torch.autograd.Function):
    """The identity, with a backward that forgets half of the columns."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        found = grad.clone()
        found[..., ::2] = 0
        return found


class Spoils(torch.autograd.Function):
    """x · 2, right by itself; its backward doubles the gradient that it is given in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.mul_(2)


def network(model: Callable[[bool], nn.Module], inputs: int = 3, outputs: int = 2) -> Callable[[bool], Problem]:
    """A model of 5 rows of `inputs` to `outputs` under a squared error."""

    def build(wrong: bool) -> Problem:
        torch.manual_seed(7)
        return Problem(model(wrong), squared_error, (torch.randn(5, inputs), torch.randn(5, outputs)))

    return build


class Block(nn.Module):
    """linear → act, three modules deep."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.inner = nn.ModuleDict({"act": nn.Sequential(nn.Identity(), Tanh(wrong))})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["act"](self.linear(x))


def deep(wrong: bool) -> nn.Module:
    blocks = nn.Sequential(Block(False), Block(wrong), Block(False))
    return nn.Sequential(nn.Linear(3, 3), blocks, nn.Linear(3, 2))


class Shared(nn.Module):
    """One activation used after each of two layers."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(3, 3), nn.Linear(3, 2), Tanh(wrong)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))))


class RemembersInput(nn.Module):
    """A linear layer; wrong: its backward reads the input from the module, which holds that of the last use."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.randn(3, 3) / 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.wrong:
            return x @ self.weight.T
        self.seen = x.detach()
        return HandWritten.apply(lambda a, w: a @ w.T, lambda g, a, w: (g @ w, g.T @ self.seen), x, self.weight)


class UsedTwice(nn.Module):
    """A layer used twice by a parent of its own."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.front, self.layer, self.back = nn.Linear(3, 3), RemembersInput(wrong), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.layer(torch.tanh(self.layer(self.front(x)))))


class CutInTheModel(nn.Module):
    """Three layers; wrong: the model's own forward detaches a skip connection between them."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))
        return self.c(torch.tanh(self.b(hidden)) + (hidden.detach() if self.wrong else hidden))


class Listed(nn.Module):
    """A model of bare parameters; wrong: its own product forgets half of the columns."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weights = nn.ParameterList([torch.randn(3, 3), torch.randn(3, 2)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.weights[0])
        return (Lost.apply(hidden) if self.wrong else hidden) @ self.weights[1]


class Branches(nn.Module):
    """Two branches that are added; wrong: the backward of one spoils the gradient that the other is given too."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.front, self.left, self.back = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.right = Doubling(wrong)

    def forward(self, x: Tensor) -> Tensor:
        h = self.front(x)
        return self.back(self.left(h) + self.right(h))


class Doubling(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        return Spoils.apply(x) if self.wrong else 2 * x


class HookedInside(nn.Module):
    """A layer whose forward puts a hook on a tensor of its own."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong, self.linear = wrong, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.linear(x))
        if self.wrong and hidden.requires_grad:
            hidden.register_hook(lambda g: g.clamp(min=-0.01, max=0.01))
        return 2 * hidden


@dataclass
class Found:
    values: Tensor
    extra: tuple[Tensor, ...]


class Structured(nn.Module):
    """Takes and gives nested structures; wrong: one of the tensors inside loses half of its gradient."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.inner = nn.Linear(3, 3)

    def forward(self, *, given: dict[str, list[Tensor]]) -> Found:
        x, y = given["pair"]
        hidden = torch.tanh(self.inner(x) + y)
        return Found(Lost.apply(hidden) if self.wrong else hidden, (x * y,))


class Nested(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.front, self.layer, self.back = nn.Linear(3, 3), Structured(wrong), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.front(x)
        found = self.layer(given={"pair": [h, torch.sin(h)]})
        return self.back(found.values + found.extra[0])


class Checkpointed(nn.Module):
    """A block that is recomputed in the backward; wrong: its activation."""

    def __init__(self, wrong: bool, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.front, self.linear, self.back = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.act = Tanh(wrong)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(checkpoint(lambda h: self.act(self.linear(h)), self.front(x), use_reentrant=self.reentrant))


class Published(nn.Module):
    """A layer that leaves a tensor for others in an attribute; wrong: that tensor's graph."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong, self.linear = wrong, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        self.aside = Lost.apply(h) if self.wrong else h.clone()
        return torch.tanh(h)


class ReadsAside(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.layer, self.back = Published(wrong), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.layer(x) + torch.sin(self.layer.aside))


class Penalised(nn.Module):
    """A loss with a layer and a submodule of its own; wrong: the submodule."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.act = Tanh(wrong)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return ((self.act(y) - t) ** 2).mean()


def loss_module(wrong: bool) -> Problem:
    problem = network(lambda _: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))(wrong)
    return Problem(problem.model, Penalised(wrong), problem.batch)


def loss_decay(wrong: bool) -> Problem:
    problem = network(lambda _: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))(wrong)
    weight = problem.model.get_parameter("0.weight")

    def loss_fn(y: Tensor, t: Tensor) -> Tensor:
        return squared_error(y, t) + 0.05 * ((weight.detach() if wrong else weight) ** 2).sum()

    return Problem(problem.model, loss_fn, problem.batch)


def loss_detached_inside(wrong: bool) -> Problem:
    problem = network(lambda _: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))(wrong)

    def loss_fn(y: Tensor, t: Tensor) -> Tensor:
        weight = torch.sigmoid(y)
        return ((weight.detach() if wrong else weight) * (y - t) ** 2).mean()

    return Problem(problem.model, loss_fn, problem.batch)


def cancelling(wrong: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), Tanh(wrong, 2.0), nn.Linear(3, 3), Tanh(wrong, 0.5), nn.Linear(3, 2))


def two_bugs(wrong: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), Tanh(wrong, 2.0), nn.Linear(3, 3), Tanh(wrong), nn.Linear(3, 2))


def pre_hooked(wrong: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    if wrong:
        model[1].register_full_backward_pre_hook(lambda module, grads: (grads[0] * 0.1,))
    return model


class Recurrent(nn.Module):
    """LSTM → activation → linear; wrong: the activation, so that the LSTM's weights are spoiled through its steps."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.rnn, self.act, self.head = nn.LSTM(1, 3, batch_first=True), Tanh(wrong), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x.unsqueeze(2))
        return self.head(self.act(states).mean(1))


class Convolutional(nn.Module):
    """conv → batch norm → activation → conv → pool; wrong: the activation."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 2, 3, bias=False), nn.BatchNorm1d(2), Tanh(wrong), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.Conv1d(2, 2, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.unsqueeze(1)))


class Attending(nn.Module):
    """Embed → multi-head self-attention → feed-forward; wrong: what the feed-forward uses for tanh."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.feed = nn.Sequential(nn.Linear(4, 4), Tanh(wrong), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.unsqueeze(2))
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        return self.feed(h).mean(1)


def place_bugs() -> Iterator[Planted]:
    zero, one = ("0.weight", "0.bias"), ("1.0.linear.weight", "1.0.linear.bias")
    block = ("1.1.linear.weight", "1.1.linear.bias")
    yield plant("three-modules-deep", network(deep), zero + one + block, "slope", culprit="1.1.inner.act.1")
    layers = ("first.weight", "first.bias", "second.weight", "second.bias")
    yield plant("shared-module", network(Shared), layers, "slope", culprit="act")
    yield plant("shared-module-remembers-last-input", network(UsedTwice), ("layer.weight",), "stale")
    yield plant("model-detaches-a-skip", network(CutInTheModel), ("a.weight", "a.bias"), "detached", culprit="")
    listed = network(Listed)
    yield plant("parameter-list", listed, ("weights.0",), "partial", culprit="")
    front = ("front.weight", "front.bias")
    left = ("left.weight", "left.bias")
    yield plant("gradient-spoiled-in-place", network(Branches), front + left, _spoiled(), culprit="right")
    inside = network(lambda w: nn.Sequential(nn.Linear(3, 3), HookedInside(w), nn.Linear(3, 2)))
    yield plant("hook-on-a-tensor-inside", inside, (*zero, "1.linear.weight", "1.linear.bias"), culprit="1")
    inner = ("layer.inner.weight", "layer.inner.bias")
    structured = {**dict.fromkeys(front, "block"), **dict.fromkeys(inner, "partial")}
    yield plant("nested-structures", network(Nested), front + inner, structured)
    linear = ("linear.weight", "linear.bias")
    for reentrant in (True, False):
        build = network(lambda w, r=reentrant: Checkpointed(w, r))
        name = f"{'reentrant-' if reentrant else ''}checkpoint"
        kinds = "unknown" if reentrant else "slope"
        yield plant(name, build, front + linear, kinds, culprit="act")
    aside = ("layer.linear.weight", "layer.linear.bias")
    yield plant("graph-out-by-an-attribute", network(ReadsAside), aside, "partial")
    both = (*zero, "2.weight", "2.bias")
    yield plant("loss-module-with-a-submodule", loss_module, both, "slope", culprit="loss_fn")
    yield plant("loss-decay-detached", loss_decay, ("0.weight",), "weight_decay", culprit="loss_fn")
    yield plant("loss-detaches-its-weights", loss_detached_inside, both, "detached", culprit="loss_fn")
    middle = ("2.weight", "2.bias")
    yield plant("mistakes-that-cancel", network(cancelling), middle, "scaled", culprit="3")
    upstream_of_both = {**dict.fromkeys(zero, "propagated"), **dict.fromkeys(middle, "slope")}
    yield plant("two-mistakes", network(two_bugs), both, upstream_of_both, culprit="3")
    yield plant("backward-pre-hook-scales", network(pre_hooked), zero, "scaled", culprit="1")


def _spoiled() -> dict[str, str]:
    return {"front.weight": "unknown", "front.bias": "unknown", "left.weight": "scaled", "left.bias": "scaled"}


def network_bugs() -> Iterator[Planted]:
    lstm = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")
    yield plant("lstm-before-a-mistake", network(Recurrent, 4), lstm, "slope", culprit="act")
    conv = ("features.0.weight", "features.1.weight", "features.1.bias")
    yield plant("convolutional-train", network(Convolutional, 8), conv, "slope", culprit="features.2", mode="train")
    yield plant("convolutional-eval", network(Convolutional, 8), conv, "slope", culprit="features.2")
    attending = (
        "embed.weight",
        "embed.bias",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
        "norm.weight",
        "norm.bias",
        "feed.0.weight",
        "feed.0.bias",
    )
    kinds = {**dict.fromkeys(attending, "slope")}
    yield plant("attention-before-a-mistake", network(Attending, 4), attending, kinds, culprit="feed.1")
