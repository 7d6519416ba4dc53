"""Mistakes that real backwards were shipped with, each in a small model, with the kind that the numbers prove of it.

They are told apart by what the one layer does wrong; what it spoils upstream shows it only mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.losses import squared_error
from tests.zoo.planted.normalisations import layer_norm, layer_norm_backward, rms_norm, rms_norm_without_projection
from tests.zoo.planted.row import (
    BIAS,
    FRONT,
    LAYER,
    WEIGHT,
    Backward,
    HandWritten,
    Planted,
    Problem,
    formula,
    plant,
    sandwich,
)

NETWORK = ("0.weight", "0.bias", "2.weight", "2.bias")
Make = Callable[[bool], nn.Module]
Formula = Callable[..., Tensor]
Kinds = str | Mapping[str, str]


class Shaped(nn.Module):
    """A layer that sees each row of the batch in another shape."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.inner, self.shape = layer, shape

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.reshape(len(x), *self.shape))
        return y.flatten(1)


class Skipped(nn.Module):
    """x + layer(x): a mistake of the layer reaches what is upstream mixed with what the skip brings."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(x)
        return y


def shaped(make: Make, *shape: int) -> Make:
    return lambda wrong: Shaped(make(wrong), *shape)


def skipped(make: Make) -> Make:
    return lambda wrong: Skipped(make(wrong))


def upstream(name: str, kind: Kinds, forward: Formula, backward: Backward, width: int = 4, **more: Any) -> Planted:
    """A layer without parameters whose input gradient is wrong, so that the front is."""
    make = formula(forward, backward)
    if "shape" in more:
        make = shaped(make, *more["shape"])
    if more.get("skip"):
        make = skipped(make)
    return plant(name, sandwich(make, width, more.get("out")), FRONT, kind, more.get("culprit", _culprit(more)))


def _culprit(more: Mapping[str, Any]) -> str:
    return f"{LAYER}.inner" if "shape" in more or more.get("skip") else LAYER


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, -1)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def batch_norm(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)


def group_norm(x: Tensor) -> Tensor:
    return F.group_norm(x, 1)


def instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x)


def spread(x: Tensor, *axes: int) -> Tensor:
    return torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + 1e-5)


_NORMED = {"front.weight": "projection", "front.bias": "spurious"}
"""J does not depend on a bias before a batch normalisation."""


def normalisations() -> Iterator[Planted]:
    yield upstream("softmax, no sum", "projection", softmax, lambda g, x: (g * softmax(x),))
    yield upstream(
        "softmax over channels, no sum", "projection", lambda x: torch.softmax(x, 1), _softmax_over_1, 12, shape=(4, 3)
    )
    yield upstream("log-softmax, no sum", "projection", log_softmax, lambda g, x: (g,))
    yield upstream("log-softmax, sum not taken", "projection", log_softmax, lambda g, x: (g - softmax(x),))
    for name, backward in (
        ("mean", layer_norm_backward(mean_term=False)),
        ("variance", layer_norm_backward(variance_term=False)),
        ("both", layer_norm_backward(False, False)),
    ):
        layer = formula(layer_norm, backward, weight=(4,), bias=(4,))
        yield plant(f"layer norm, no {name} term", sandwich(layer, 4), FRONT, "projection")
    rms = formula(rms_norm, rms_norm_without_projection, weight=(4,))
    yield plant("rms norm, no projection", sandwich(rms, 4), FRONT, "projection")
    yield upstream("batch norm, statistics constant", _NORMED, batch_norm, lambda g, x: (g / spread(x, 0),))
    yield upstream("group norm, statistics constant", "projection", group_norm, _of_group, 12, shape=(3, 4))
    yield upstream("instance norm, statistics constant", "projection", instance_norm, _of_instance, 12, shape=(3, 4))
    yield upstream(
        "unit length, no projection", "projection", F.normalize, lambda g, x: (g / x.norm(dim=-1, keepdim=True),)
    )
    yield upstream("centring, mean not taken out", "projection", centred, lambda g, x: (g,))
    yield plant(
        "weight norm, no projection",
        sandwich(formula(_weight_norm, _weight_norm_plain, v=(4, 4)), 4),
        ("layer.v",),
        "projection",
    )


def _softmax_over_1(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g * torch.softmax(x, 1),)


def _of_group(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g / spread(x, 1, 2),)


def _of_instance(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g / spread(x, 2),)


def _weight_norm(x: Tensor, v: Tensor) -> Tensor:
    return x @ (v / v.norm(dim=1, keepdim=True)).T


def _weight_norm_plain(g: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    norm = v.norm(dim=1, keepdim=True)
    return g @ (v / norm), g.T @ x / norm


def activations() -> Iterator[Planted]:
    inner = 0.7978845608028654

    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def exact_slope(g: Tensor, x: Tensor) -> tuple[Tensor]:
        return (g * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)),)

    def without_cube(g: Tensor, x: Tensor) -> tuple[Tensor]:
        t = torch.tanh(inner * (x + 0.044715 * x**3))
        return (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner),)

    sigmoid = torch.sigmoid
    yield upstream("gelu by tanh, slope of the exact one", "slope", gelu, exact_slope)
    yield upstream("gelu by tanh, cube forgotten", "slope", gelu, without_cube)
    yield upstream("silu, second term missing", "slope", F.silu, lambda g, x: (g * sigmoid(x),))
    yield upstream("tanh, not squared", "slope", torch.tanh, lambda g, x: (g * (1 - torch.tanh(x)),))
    yield upstream("softplus, beta forgotten", "slope", lambda x: F.softplus(x, beta=3), lambda g, x: (g * sigmoid(x),))
    yield upstream("leaky relu, no leak", "slope", lambda x: F.leaky_relu(x, 0.2), lambda g, x: (g * (x > 0),))
    yield upstream("elu, by the input", "slope", F.elu, lambda g, x: (torch.where(x > 0, g, g * (x + 1)),))
    yield upstream(
        "square, factor forgotten for some", "slope", lambda x: x.relu() ** 2 + x, lambda g, x: (g * (x.relu() + 1),)
    )
    yield upstream("relu, not masked", "unmasked", torch.relu, lambda g, x: (g,))
    yield upstream("clamp, not masked", "unmasked", lambda x: x.clamp(-0.3, 0.3), lambda g, x: (g,))
    yield upstream("hard shrink, not masked", "unmasked", lambda x: F.hardshrink(x, 0.2), lambda g, x: (g,))
    yield upstream("round, straight through", "spurious", torch.round, lambda g, x: (g,))


class Tokens(nn.Module):
    """A front that all tokens share, then a layer that sees them as (batch, token, channel), then a back."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.front, self.layer, self.back = nn.Linear(3, 4), layer, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.back(self.layer(self.front(x)))
        return y


class Scores(nn.Module):
    """Self-attention of one head, whose scores go through the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.inner(x @ x.transpose(1, 2)), -1) @ x


def tokens(
    name: str,
    kind: str,
    forward: Formula,
    backward: Backward,
    scores: bool = False,
    skip: bool = False,
    wrong: tuple[str, ...] = FRONT,
) -> Planted:
    """A layer without parameters whose input gradient is wrong at some tokens, so that the front that all share is."""
    make = formula(forward, backward)
    inner = Scores if scores else Skipped if skip else None

    def build(is_wrong: bool) -> Problem:
        torch.manual_seed(7)
        model = Tokens(make(is_wrong) if inner is None else inner(make(is_wrong)))
        return Problem(model, squared_error, (torch.randn(3, 5, 3), torch.randn(3, 5, 2)))

    return plant(name, build, wrong, kind, LAYER if inner is None else f"{LAYER}.inner")


KEPT = (torch.arange(60).reshape(3, 5, 4) * 7 % 5 > 1).double()
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
VALID = torch.tensor([1.0, 1, 1, 0, 0]).double()[:, None]


def dropout(x: Tensor) -> Tensor:
    return x * KEPT / 0.5


def masked(x: Tensor) -> Tensor:
    return x.masked_fill(~CAUSAL, -2.0)


def masks() -> Iterator[Planted]:
    yield tokens("dropout, mask forgotten", "unmasked", dropout, lambda g, x: (g / 0.5,))
    yield tokens("dropout, not rescaled", "scaled", dropout, lambda g, x: (g * KEPT,))
    yield tokens("dropout in a branch, not rescaled", "propagated", dropout, lambda g, x: (g * KEPT,), skip=True)
    yield tokens("causal mask, not in the backward", "unmasked", masked, lambda g, x: (g.clone(),), scores=True)
    yield tokens("padded tokens, not masked", "unmasked", lambda x: x.sin() * VALID, lambda g, x: (g * x.cos(),))
    yield plant("cross-entropy, ignored rows counted", _ignoring, NETWORK, "unmasked", "loss_fn")


def places() -> Iterator[Planted]:
    def lost(index: tuple[Any, ...], factor: float = 0.0) -> Backward:
        def backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
            right = g * x.cos()
            right[index] *= factor
            return (right,)

        return backward

    every = slice(None)
    yield tokens("one token twice", "block", torch.sin, lost((every, 1), 2.0))
    yield tokens("last token lost", "block", torch.sin, lost((every, -1)))
    yield tokens("one tile lost", "partial", torch.sin, lost((every, slice(3, 5), slice(2, 4))))
    yield upstream("one head twice", "partial", torch.sin, lost((every, 1), 2.0), 12, shape=(3, 4))
    yield upstream("last row of the batch lost", "block", torch.sin, lost((-1,)), 4)
    tile = formula(lambda x, w: x @ w.T, _last_tile_lost, weight=(6, 6))
    yield plant("tile at the border lost", sandwich(tile, 6), WEIGHT, "partial")


def _last_tile_lost(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    right = g.T @ x
    right[4:, 4:] = 0
    return g @ w, right


def terms() -> Iterator[Planted]:
    yield upstream(
        "skip inside forgotten", "missing_term", lambda x: x + x.sin().cumsum(-1), lambda g, x: (_cumsum(g) * x.cos(),)
    )
    yield upstream(
        "skip inside counted twice",
        "missing_term",
        lambda x: x + x.sin().cumsum(-1),
        lambda g, x: (2 * g + _cumsum(g) * x.cos(),),
    )
    yield upstream(
        "half of the gradient in a branch",
        "propagated",
        lambda x: x.sin().cumsum(-1),
        lambda g, x: (_cumsum(g) * x.cos() / 2,),
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
        lambda g, x: (_cumsum(g) * x.cos(),),
    )
    yield upstream("flip not undone", "permuted", lambda x: x.flip(-1), lambda g, x: (g,))


_SMOOTHED = {**dict.fromkeys(NETWORK, "missing_term"), "2.bias": "partial"}
"""The bias of a class that is the target in its share of the rows is right without smoothing."""


def losses() -> Iterator[Planted]:
    yield plant("squared error without target", _without_target, NETWORK, "missing_term", "loss_fn")
    yield plant("cross-entropy without target", _class_forgotten, NETWORK, "missing_term", "loss_fn")
    yield plant("cross-entropy, smoothing forgotten", _smoothing_forgotten, NETWORK, _SMOOTHED, "loss_fn")
    yield plant("huber, never linear", _never_linear, NETWORK, "slope", "loss_fn")
    yield plant("logistic loss, weight of positives forgotten", _positives_forgotten, NETWORK, "slope", "loss_fn")


def _cumsum(g: Tensor) -> Tensor:
    """The backward of a cumulative sum along the last axis."""
    return g.flip(-1).cumsum(-1).flip(-1)


def sums() -> Iterator[Planted]:
    def summed(bias: Callable[[Tensor], Tensor]) -> Backward:
        return lambda g, x, w, b: (g @ w, g.T @ x, bias(g))

    for name, kind, bias in (
        ("over features", "wrong_sum", lambda g: g.sum(1)),
        ("of the last row only", "wrong_sum", lambda g: g[-1]),
        ("as a mean", "scaled", lambda g: g.mean(0)),
        ("shifted by one", "permuted", lambda g: g.sum(0).roll(1)),
    ):
        layer = formula(F.linear, summed(bias), weight=(5, 5), bias=(5,))
        yield plant(f"bias summed {name}", sandwich(layer, 5), BIAS, kind)
    layer = formula(layer_norm, layer_norm_backward(weight_input=True), weight=(4,), bias=(4,))
    yield plant("norm's scale by the raw input", sandwich(layer, 4), WEIGHT, "wrong_sum")
    yield plant("padding that gets a gradient", _padded, ("0.weight",), "partial", "0")
    gates = formula(_gated, _gates_swapped, weight=(8, 4))
    yield plant("gates swapped", sandwich(gates, 4), WEIGHT, "permuted")


def _gated(x: Tensor, w: Tensor) -> Tensor:
    reset, update = (x @ w.T).chunk(2, -1)
    return reset.sigmoid() * update.tanh()


def _gates_swapped(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    reset, update = (x @ w.T).chunk(2, -1)
    r, u = reset.sigmoid(), update.tanh()
    dr, du = g * u * r * (1 - r), g * r * (1 - u * u)
    return torch.cat([dr, du], -1) @ w, torch.cat([du, dr], -1).T @ x


def paths() -> Iterator[Planted]:
    yield plant("scale detached", sandwich(_Scaled, 4), FRONT, "detached")
    yield plant("tied weight, one use detached", sandwich(_Tied, 4), ("layer.weight",), "detached")
    yield plant("the same mistake in two layers", sandwich(_twice, 4), FRONT, "slope", "layer.1")


def _twice(wrong: bool) -> nn.Module:
    silu = formula(F.silu, lambda g, x: (g * torch.sigmoid(x),))
    return nn.Sequential(silu(wrong), silu(wrong))


def _two(wrong: bool) -> nn.Module:
    silu = formula(F.silu, lambda g, x: (g * torch.sigmoid(x),))
    diagonal = formula(softmax, lambda g, x: (g * softmax(x) * (1 - softmax(x)),))
    return nn.Sequential(diagonal(wrong), silu(wrong))


class _Twice(nn.Module):
    """A layer that is called twice; wrong: it takes the inputs of other rows."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        backward = lambda g, x, w: (g @ w.roll(1, 0), g.T @ x.roll(1, 0))  # noqa: E731
        self.inner = formula(lambda x, w: x @ w.T, backward, weight=(4, 4))(wrong)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(torch.tanh(self.inner(x)))
        return y


class _Scaled(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        largest = x.norm(dim=-1, keepdim=True)
        return (x / (largest.detach() if self.wrong else largest)).sin()


class _Tied(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        again = self.weight.detach() if self.wrong else self.weight
        return torch.tanh(x @ self.weight.T) @ again


def not_told() -> Iterator[Planted]:
    """Near relations of what is told, which the numbers do not prove."""
    yield upstream("softmax, diagonal only", "unknown", softmax, lambda g, x: (g * softmax(x) * (1 - softmax(x)),))
    yield upstream("softmax, sum over the batch", "unknown", softmax, _sum_over_batch)
    yield upstream("cumulative sum not reversed", "unknown", lambda x: x.cumsum(-1), lambda g, x: (g.cumsum(-1),))
    yield upstream("rotation not undone", "unknown", lambda x: x @ _TURN.T, lambda g, x: (g @ _TURN.T,))
    yield upstream("wrong in the upstream gradient", "unknown", torch.sin, _spoiled)
    yield plant("a mistake that is told behind one that is not", sandwich(_two, 4), FRONT, "unknown", "layer.1")
    yield plant(
        "wrong in both of two calls", sandwich(_Twice, 4), (*FRONT, "layer.inner.weight"), "unknown", "layer.inner"
    )
    stale = formula(lambda x, w: x @ w.T, lambda g, x, w: (g @ w, g.T @ x.roll(1, 0)), weight=(4, 4))
    yield plant("input of another row", sandwich(stale, 4), WEIGHT, "unknown")


def _sum_over_batch(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (softmax(x) * (g - (g * softmax(x)).sum(0)),)


def _spoiled(g: Tensor, x: Tensor) -> tuple[Tensor]:
    return (g * x.cos() * (1 + 0.3 * torch.sin(50 * g)),)


_TURN = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double())[0]


def _network(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> Problem:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return Problem(model, loss, (torch.randn(6, 3), targets))


def _by_hand(forward: Formula, backward: Backward, wrong: bool) -> Formula:
    return (lambda *inputs: HandWritten.apply(forward, backward, *inputs)) if wrong else forward


def _ignoring(wrong: bool) -> Problem:
    torch.manual_seed(7)
    targets = torch.tensor([0, 2, -100, 1, -100, 2])

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (torch.softmax(y, -1) - F.one_hot(t.clamp(0), 3)) / (t >= 0).sum(), None

    return _network(_by_hand(F.cross_entropy, backward, wrong), targets)


def _without_target(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return 2 * g * y / y.numel(), None

    return _network(_by_hand(F.mse_loss, backward, wrong), torch.randn(6, 3))


class _Lookup(nn.Module):
    """Rows of a table, 0 for token 0; wrong: its backward gives that row a gradient."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        return _by_hand(_rows, _rows_and_padding, self.wrong)(tokens, self.weight)


def _rows(tokens: Tensor, weight: Tensor) -> Tensor:
    return weight[tokens] * (tokens > 0).unsqueeze(-1)


def _rows_and_padding(g: Tensor, tokens: Tensor, weight: Tensor) -> tuple[None, Tensor]:
    return None, torch.zeros_like(weight).index_add(0, tokens, g)


def _padded(wrong: bool) -> Problem:
    torch.manual_seed(7)
    model = nn.Sequential(_Lookup(wrong), nn.Linear(3, 2))
    return Problem(model, squared_error, (torch.tensor([1, 0, 2, 3, 0]), torch.randn(5, 2)))


def _class_forgotten(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * softmax(y) / len(y), None

    return _network(_by_hand(F.cross_entropy, backward, wrong), torch.randint(0, 3, (6,)))


def _smoothing_forgotten(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def forward(y: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(y, t, label_smoothing=0.2)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (softmax(y) - F.one_hot(t, 3)) / len(y), None

    return _network(_by_hand(forward, backward, wrong), torch.randint(0, 3, (6,)))


def _never_linear(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def forward(y: Tensor, t: Tensor) -> Tensor:
        return F.huber_loss(y, t, delta=0.5)

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (y - t) / y.numel(), None

    return _network(_by_hand(forward, backward, wrong), torch.randn(6, 3))


def _positives_forgotten(wrong: bool) -> Problem:
    torch.manual_seed(7)

    def forward(y: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(y, t, pos_weight=torch.tensor([3.0, 2.0, 4.0]).to(y))

    def backward(g: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return g * (torch.sigmoid(y) - t) / y.numel(), None

    return _network(_by_hand(forward, backward, wrong), torch.randint(0, 2, (6, 3)).float())


MISTAKES: list[Planted] = [
    *normalisations(),
    *activations(),
    *masks(),
    *places(),
    *terms(),
    *losses(),
    *sums(),
    *paths(),
    *not_told(),
]
"""The table; `kinds` is the diagnosis of every wrong parameter."""
