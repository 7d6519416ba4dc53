"""Correct models on which differences are delicate: tiny and huge losses, zero gradients, corners, curvature, depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.losses import probe, squared_error


@dataclass(frozen=True)
class Problem:
    """What `check_module` is called with."""

    model: nn.Module
    loss_fn: Callable[..., Tensor]
    batch: Any


@dataclass(frozen=True)
class Delicate:
    """A correct model.

    Attributes:
        build: makes it from a seed.
        statuses: for the names that need not `match`, what may be said of them.
        to_spoil: names in which a planted error must be found; () where the noise of J may hide it.
    """

    id: str
    build: Callable[[int], Problem]
    to_spoil: tuple[str, ...]
    statuses: Mapping[str, str] = field(default_factory=dict)
    mode: str = "eval"
    include: str | list[str] | None = None


DELICATE: list[Delicate] = []


def add(name: str, build: Callable[[], Problem], to_spoil: tuple[str, ...], **more: Any) -> None:
    def seeded(seed: int) -> Problem:
        torch.manual_seed(100 + seed)
        return build()

    DELICATE.append(Delicate(name, seeded, to_spoil, **more))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def filled(model: nn.Module, **values: Any) -> nn.Module:
    """Parameters set by name, dots written as double underscores."""
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name.replace("__", ".")).copy_(torch.as_tensor(value))
    return model


# The size of the loss ---------------------------------------------------------------------------------------------


def scaled(factor: float) -> Callable[[], Problem]:
    loss = lambda y, t: factor * squared_error(y, t)  # noqa: E731
    return lambda: Problem(mlp(), loss, (torch.randn(5, 3), torch.randn(5, 2)))


def summed() -> Problem:
    batch = (torch.randn(300, 3), 10 * torch.randn(300, 2))
    return Problem(mlp(), nn.MSELoss(reduction="sum"), batch)


def offset() -> Problem:
    """A constant a million times larger than what depends on θ: the noise of J may hide everything."""
    return Problem(mlp(), lambda y, t: squared_error(y, t) + 1e6, (torch.randn(5, 3), torch.randn(5, 2)))


def exploding() -> Problem:
    return Problem(mlp(), lambda y: torch.exp(12 + y).sum(), torch.randn(5, 3))


def confident() -> Problem:
    """A cross-entropy of about 1e-8."""
    model = mlp()
    filled(model, **{"2__bias": [9.0, -9.0]})
    return Problem(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)))


def sizes_of_the_loss() -> None:
    for factor in (1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6):
        add(f"loss-times-{factor:g}", scaled(factor), ("0.weight", "2.bias"))
    add("summed-over-300-rows", summed, ("0.weight", "2.weight"))
    anything = dict.fromkeys(("0.weight", "0.bias", "2.weight", "2.bias"), "match undecided flat")
    add("constant-of-a-million", offset, (), statuses=anything)
    add("exponential-of-twelve", exploding, ("0.weight", "2.bias"))
    add("cross-entropy-of-1e-8", confident, (), statuses=dict.fromkeys(anything, "match undecided"))


# Gradients that are zero ------------------------------------------------------------------------------------------


class KeyBias(nn.Module):
    """Self-attention, in which a bias of the keys shifts every score of a row alike, and so changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT
        return torch.softmax(scores, -1) @ self.value(x)


def key_bias() -> Problem:
    return Problem(KeyBias(), probe, torch.randn(2, 3, 2))


def torch_attention() -> Problem:
    """The key's third of in_proj_bias has no gradient; the other two thirds do."""
    return Problem(nn.MultiheadAttention(2, 1), probe, ((torch.randn(3, 2, 2),) * 3,))


def before_batch_norm() -> Problem:
    return Problem(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh()), probe, torch.randn(5, 3))


def layer_norm_summed() -> Problem:
    return Problem(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), torch.sum, torch.randn(5, 3))


def softmax_summed() -> Problem:
    return Problem(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), torch.sum, torch.randn(5, 3))


def saturated() -> Problem:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))
    filled(model, **{"0__weight": 40 * torch.randn(3, 2).sign(), "0__bias": [45.0, -45.0, 20.0]})
    return Problem(model, probe, torch.ones(3, 2) + torch.rand(3, 2))


def dead_relu() -> Problem:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    return Problem(filled(model, **{"0__bias": [-50.0] * 3}), probe, torch.randn(4, 2))


def zero_gradients() -> None:
    add("key-bias", key_bias, ("query.weight", "value.bias"), statuses={"key.bias": "flat"})
    add("torch-attention", torch_attention, ("in_proj_weight", "in_proj_bias"))
    add("bias-before-batch-norm", before_batch_norm, ("0.weight",), statuses={"0.bias": "flat"}, mode="train")
    flat = {"0.weight": "flat", "0.bias": "flat"}
    add("layer-norm-summed", layer_norm_summed, ("1.weight",), statuses=flat)
    add("softmax-summed", softmax_summed, (), statuses=flat)
    tiny = {"0.weight": "flat match undecided", "0.bias": "flat match undecided"}
    add("saturated-sigmoids", saturated, ("2.weight",), statuses=tiny)
    dead = {**flat, "2.weight": "flat"}
    add("dead-relu", dead_relu, ("2.bias",), statuses=dead)


# Corners ----------------------------------------------------------------------------------------------------------


def relu_mlp() -> Problem:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    return Problem(model, probe, torch.randn(8, 3))


def relu_at_zero() -> Problem:
    """Zero biases and a batch with rows of zeros: those rows sit on the corner for every bias."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    batch = torch.randn(4, 2)
    batch[1:3] = 0
    return Problem(filled(model, **{"0__bias": [0.0] * 3}), probe, batch)


def relu_near_zero() -> Problem:
    """A batch of one row whose pre-activations are ±1e-8: differentiable, but not to a step of 1e-7."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    batch = torch.randn(3, 2, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1e-8, -1e-8, 3e-8]) - batch[0] @ model[0].weight.T)
    return Problem(model, probe, batch)


def abs_at_zero() -> Problem:
    model = filled(nn.Linear(2, 2), weight=[[0.0, 0.0], [0.5, -1.0]], bias=[0.0, 0.1])
    return Problem(model, lambda y: y.abs().sum(), torch.randn(3, 2))


def hardtanh_at_its_edges() -> Problem:
    model = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(), nn.Linear(3, 1))
    filled(model, **{"0__weight": [[0.0, 0.0], [0.0, 0.0], [0.3, 0.2]], "0__bias": [1.0, -1.0, 0.1]})
    return Problem(model, probe, torch.rand(3, 2))


def max_with_ties() -> Problem:
    """Two channels with equal weights under a max over channels, and a max pool over a constant image."""
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 1))
    batch = torch.randn(2, 1, 5)
    batch[0] = batch[0, 0, 0]
    return Problem(model, probe, batch)


class MaxOfTwins(nn.Module):
    """The larger of two linear outputs with the same weights: a tie everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Linear(2, 2)
        filled(self.pair, weight=self.pair.weight[:1].expand(2, 2), bias=self.pair.bias[:1].expand(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x).max(dim=1).values


def max_of_twins() -> Problem:
    return Problem(MaxOfTwins(), probe, torch.randn(3, 2))


def amax_of_twins() -> Problem:
    """As above, through amax, which shares the gradient between the tied."""

    class Shared(MaxOfTwins):
        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x).amax(dim=1)

    return Problem(Shared(), probe, torch.randn(3, 2))


def huber_at_its_corner() -> Problem:
    """Residuals of exactly ±delta, where the slope is continuous and its derivative is not."""
    model = filled(nn.Linear(2, 2), weight=torch.zeros(2, 2), bias=[0.0, 0.0])
    return Problem(model, nn.HuberLoss(), (torch.randn(3, 2), torch.tensor([[1.0, -1.0]] * 3)))


def l1_at_zero_residual() -> Problem:
    model = filled(nn.Linear(2, 2), weight=torch.zeros(2, 2), bias=[0.0, 0.5])
    return Problem(model, nn.L1Loss(), (torch.randn(3, 2), torch.tensor([[0.0, 0.0]] * 3)))


class Embedded(nn.Module):
    """Anchor, positive and negative through one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = filled(nn.Linear(2, 2), weight=torch.eye(2), bias=[0.0, 0.0])

    def forward(self, *points: Tensor) -> Tensor:
        return torch.stack([self.map(point) for point in points])


def triplet_on_the_margin() -> Problem:
    """|a − p| − |a − n| + margin is zero in the first triplet and not in the second."""
    points = (torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.5, 1.0]]))
    return Problem(Embedded(), lambda y: nn.functional.triplet_margin_loss(*y), (points,))


def triplet_with_equal_points() -> Problem:
    """Positive equal to the anchor: a distance of zero."""
    same = torch.tensor([[0.5, 0.2], [1.0, 1.0]])
    points = (same, same.clone(), torch.tensor([[0.7, 0.4], [0.5, 1.0]]))
    return Problem(Embedded(), lambda y: nn.functional.triplet_margin_loss(*y), (points,))


def hinge_on_the_margin() -> Problem:
    model = filled(nn.Linear(2, 1), weight=[[0.0, 0.0]], bias=[1.0])
    loss = lambda y, t: torch.relu(1 - t * y).mean()  # noqa: E731
    return Problem(model, loss, (torch.randn(3, 2), torch.tensor([[1.0], [1.0], [-1.0]])))


def corners() -> None:
    add("relu-mlp", relu_mlp, ("0.weight", "4.weight"))
    add("relu-at-zero", relu_at_zero, ("0.weight", "2.weight"), statuses={"0.bias": "kink"})
    near = {"0.weight": "match undecided", "0.bias": "match undecided"}
    add("relu-near-zero", relu_near_zero, ("2.weight",), statuses=near)
    # autograd's slope at a corner may be the mean of both, which is what a centered difference gives
    corner = {"weight": "kink match", "bias": "kink match"}
    add("abs-at-zero", abs_at_zero, (), statuses=corner)
    edges = {"0.weight": "kink", "0.bias": "kink"}
    add("hardtanh-at-its-edges", hardtanh_at_its_edges, ("2.weight",), statuses=edges)
    add("max-pool-ties", max_with_ties, ("0.bias", "3.weight"), statuses={"0.weight": "match kink"})
    tie = {"pair.weight": "kink", "pair.bias": "kink"}
    add("max-of-twins", max_of_twins, (), statuses=tie)
    add("amax-of-twins", amax_of_twins, (), statuses=dict.fromkeys(tie, "match kink"))
    add("huber-at-its-corner", huber_at_its_corner, ("weight", "bias"))
    add("l1-at-zero-residual", l1_at_zero_residual, (), statuses=corner)
    margin = {"map.weight": "kink match", "map.bias": "kink flat match"}
    add("triplet-on-the-margin", triplet_on_the_margin, (), statuses=margin)
    add("triplet-with-equal-points", triplet_with_equal_points, ("map.weight",), statuses={"map.bias": "flat"})
    add("hinge-on-the-margin", hinge_on_the_margin, (), statuses=corner)


# Scales, curvature, depth -----------------------------------------------------------------------------------------


def tiny_and_huge_weights() -> Problem:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
        model[0].bias.mul_(1e-6)
        model[1].weight.mul_(1e4)
    return Problem(model, probe, torch.randn(5, 3))


class MixedScales(nn.Module):
    """One tensor with entries of 1e-6 and of 1e4, each of which matters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1e-6, 1e-2, 1.0, 1e4]))
        self.theta = nn.Parameter(self.scale * (1 + torch.rand(4)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.theta / self.scale)


def mixed_scales() -> Problem:
    return Problem(MixedScales(), probe, torch.randn(5, 4))


class ShortVector(nn.Module):
    """A direction of a vector of length 1e-4: curved on that scale."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(1e-4 * torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.v / self.v.norm())


def short_vector() -> Problem:
    return Problem(ShortVector(), probe, torch.randn(5, 3))


def fast_oscillation() -> Problem:
    return Problem(nn.Linear(2, 2), lambda y: torch.sin(300 * y).mean(), torch.randn(4, 2))


class Deep(nn.Module):
    """Sixty layers, in which the gradient shrinks to a few 1e-9 on the way to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(60)])
        with torch.no_grad():
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight)
                layer.weight.mul_(0.76)
                layer.bias.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def deep() -> Problem:
    return Problem(Deep(), probe, torch.randn(4, 2))


def scales_and_depth() -> None:
    add("weights-of-1e-6-and-1e4", tiny_and_huge_weights, ("0.weight", "1.weight", "3.weight"))
    add("scales-mixed-in-one-tensor", mixed_scales, ("theta",))
    add("direction-of-a-short-vector", short_vector, ("v",))
    add("fast-oscillation", fast_oscillation, ("weight", "bias"))
    ends = ["layers.0.*", "layers.50.*"]
    far = {f"layers.{k}.{part}": "match undecided flat" for k in range(60) for part in ("weight", "bias")}
    add("sixty-layers", deep, ("layers.0.weight", "layers.50.weight"), statuses=far, include=ends)


for _family in (sizes_of_the_loss, zero_gradients, corners, scales_and_depth):
    _family()
