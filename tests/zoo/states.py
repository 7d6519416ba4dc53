"""Models and surroundings with much state that a check could disturb, a row each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.losses import probe


@dataclass
class Setup:
    """What `check_module` is called with, and what else to watch."""

    model: nn.Module
    loss_fn: Callable[..., Tensor] = probe
    batch: Any = None
    watched: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    id: str
    build: Callable[[], Setup]


STATES: list[State] = []


def state(build: Callable[[], Setup]) -> Callable[[], Setup]:
    """Add a row under the builder's own name."""
    STATES.append(State(build.__name__.strip("_").replace("_", "-"), build))
    return build


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape)


@state
def batch_norm_mixed_flags() -> Setup:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    model[2].eval()
    return Setup(model, batch=rows(4, 3))


@state
def all_in_eval() -> Setup:
    return Setup(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).eval(), batch=rows(4, 3))


@state
def spectral_norm() -> Setup:
    return Setup(parametrizations.spectral_norm(nn.Linear(3, 2)), batch=rows(4, 3))


@state
def weight_norm() -> Setup:
    return Setup(parametrizations.weight_norm(nn.Linear(3, 2)), batch=rows(4, 3))


@state
def tied_weights() -> Setup:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
    model[1].weight = model[0].weight
    return Setup(model, batch=torch.tensor([0, 2, 2]))


@state
def frozen_with_nan_payloads() -> Setup:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    odd = torch.tensor([0x7FC12345, -0x3ABCD1, -0x80000000, 0x00000001], dtype=torch.int32).view(torch.float32)
    model.register_buffer("odd", odd)
    model[1].weight.grad = odd.clone().view(2, 2)
    return Setup(model, batch=rows(4, 3))


def _of_dtype(dtype: torch.dtype) -> Setup:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    return Setup(model, batch=rows(4, 3).to(dtype))


@state
def float16() -> Setup:
    return _of_dtype(torch.float16)


@state
def bfloat16() -> Setup:
    return _of_dtype(torch.bfloat16)


@state
def float64() -> Setup:
    return _of_dtype(torch.float64)


@state
def complex64() -> Setup:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "complex modules are a new feature"
        return _of_dtype(torch.complex64)


@state
def odd_layouts() -> Setup:
    model = nn.Sequential(nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(4, 2))
    model[0].to(memory_format=torch.channels_last)
    model[2].weight = nn.Parameter(torch.randn(8, 4)[::2, 1:3].t())
    model[2].bias = nn.Parameter(torch.randn(1).expand(2))
    images = rows(4, 2, 3, 2).to(memory_format=torch.channels_last)
    return Setup(model, batch=images[::2].expand(2, 2, 3, 2))


@state
def views_of_one_flat_tensor() -> Setup:
    flat = torch.randn(20)
    model = nn.Linear(3, 2)
    model.weight.data = flat[3:9].view(2, 3)
    model.bias.data = flat[9:11]
    return Setup(model, batch=flat[11:20].view(3, 3), watched={"flat": flat})


class Wanderer(nn.Module):
    """A forward that writes to all it can reach: buffers, plain tensors, counters, lists, flags, its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("average", torch.zeros(2), persistent=False)
        self.plain = torch.ones(2)
        self.history: list[Tensor] = []
        self.table = {"kept": torch.zeros(2)}
        self.counter = 0
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(1.5)
        self.calls += 1
        self.counter += 1
        self.mask = ~self.mask
        self.average.mul_(0.9).add_(x.detach().mean(0))
        self.plain.add_(1)
        self.plain = self.plain * 2
        self.history.append(x)
        self.table["new"] = x
        self.table["kept"].add_(1)
        self.inner.training = not self.inner.training
        self.last = self.inner(x)
        if not hasattr(self, "cache"):
            self.register_buffer("cache", torch.ones(2))
        return self.last * self.cache


@state
def forward_that_writes_everywhere() -> Setup:
    return Setup(Wanderer(), batch=rows(3, 2))


class Meddler(nn.Module):
    """A forward that changes the process: default dtype, seeds, grad mode, switches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        np.random.seed(3)
        torch.set_default_dtype(torch.float32)
        torch.backends.cudnn.benchmark = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("medium")
        self.train()
        return self.inner(x) * self.frozen * float(np.random.rand())


@state
def forward_that_changes_the_process() -> Setup:
    return Setup(Meddler(), batch=rows(3, 2))


class OwnGenerators(nn.Module):
    """Noise from generators of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.torch_generator = torch.Generator().manual_seed(5)
        self.numpy_generator = np.random.default_rng(5)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=self.torch_generator, dtype=x.dtype)
        return self.inner(x + noise) * self.numpy_generator.uniform(1, 2)


@state
def generators_of_its_own() -> Setup:
    return Setup(OwnGenerators(), batch=rows(3, 2))


@state
def dropout_everywhere() -> Setup:
    layers = [nn.Linear(2, 3), nn.Dropout(), nn.AlphaDropout(), nn.RReLU(), nn.Linear(3, 1)]
    return Setup(nn.Sequential(*layers), batch=rows(3, 2))


@state
def optimizer_with_state() -> Setup:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    probe(model(rows(4, 3))).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return Setup(model, batch=rows(4, 3), watched={"optimizer": optimizer, "scheduler": vars(scheduler)})


@state
def hooks_of_every_kind() -> Setup:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step(parameter: Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
        parameter.register_hook(lambda g: g * 1.0)
        parameter.note = ["an attribute on the parameter"]
    model[0].register_forward_hook(lambda module, args, output: output)
    model[0].register_forward_pre_hook(lambda module, args: None)
    model[1].register_full_backward_hook(lambda module, grad_in, grad_out: None)
    model[1].register_full_backward_pre_hook(lambda module, grad_out: None)
    model.register_state_dict_post_hook(lambda *args: None)
    return Setup(model, batch=rows(4, 3), watched={"optimizer": optimizer})


@state
def sparse_gradients() -> Setup:
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1))
    tokens = torch.tensor([1, 1, 3])
    probe(model(tokens)).backward()
    return Setup(model, batch=tokens)


@state
def embedding_renormalised_in_place() -> Setup:
    return Setup(nn.Sequential(nn.Embedding(3, 2, max_norm=0.5), nn.Linear(2, 1)), batch=torch.tensor([0, 2]))


@state
def recurrent() -> Setup:
    return Setup(nn.LSTM(2, 2), batch=rows(3, 2, 2))


@state
def batch_with_gradients_and_views() -> Setup:
    base = rows(6, 3)
    leaf = base[::2].clone().requires_grad_()
    leaf.grad = torch.ones_like(leaf)
    target = (leaf * 2).sum(1, keepdim=True)
    loss = lambda y, t: ((y - t) ** 2).mean()  # noqa: E731
    return Setup(nn.Linear(3, 1), loss, (leaf, target), {"base": base})


@state
def batch_in_nested_containers() -> Setup:
    class Reader(nn.Linear):
        def forward(self, items: Any) -> Tensor:
            items["pair"][0].add_(1)
            return super().forward(items["pair"][0] + items["more"]["deep"][0])

    batch = ({"items": {"pair": (rows(2, 3), 7), "more": {"deep": [rows(2, 3), "text"]}}},)
    return Setup(Reader(3, 2), batch=batch)


@state
def batch_made_in_inference_mode() -> Setup:
    with torch.inference_mode():
        batch = rows(4, 3)
    return Setup(nn.Linear(3, 2), batch=batch)


@state
def loss_with_tensors() -> Setup:
    weights = torch.tensor([0.2, 0.5, 0.3])
    cross = nn.CrossEntropyLoss(weight=weights)
    captured = torch.tensor([0.1])
    model = nn.Linear(3, 3)

    def loss_fn(y: Tensor, t: Tensor) -> Tensor:
        return cross(y, t) + captured.squeeze() * model.weight.square().sum()

    watched = {"criterion": cross, "weights": weights, "captured": captured}
    return Setup(model, loss_fn, (rows(4, 3), torch.tensor([0, 2, 1, 1])), watched)


@state
def model_that_grows_hooks() -> Setup:
    class Growing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.register_forward_hook(lambda *args: None)
            if self.weight.requires_grad:
                self.weight.register_hook(lambda g: g * 1.0)
            return super().forward(x)

    return Setup(Growing(2, 2), batch=rows(2, 2))
