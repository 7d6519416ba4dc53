"""Promise: what correct models are in the habit of doing beside computing a loss is not held against them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.snapshot import Snapshot
from torch_gradcheck import Report, check_closure, check_module

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def checked(model: nn.Module, loss_fn: Callable[..., Any] = F.mse_loss, batch: Any = (X, Y), **options: Any) -> Report:
    before = Snapshot(model=model, batch=batch)
    report = check_module(model, loss_fn, batch, **options)
    assert before.changes() == []
    return report


def statuses(report: Report) -> dict[str, str]:
    return {row.name: str(row.status) for row in report}


class Cached(nn.Module):
    """Keeps what it has computed from its weight until train() or eval() is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.merged: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.merged is None:
            self.merged = self.weight.exp()
        return x @ self.merged

    def train(self, mode: bool = True) -> nn.Module:
        self.merged = None
        return super().train(mode)


class KeyedByVersion(Cached):
    """Keeps it without gradients, until the weight's version tells that an optimizer has moved it."""

    version = -1

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return x @ self.weight.exp()
        if self.version != self.weight._version:
            self.merged, self.version = self.weight.detach().exp(), self.weight._version
        assert self.merged is not None
        return x @ self.merged


class Flagged(Cached):
    """Says in a dict of its own that it has filled the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        if not self.state.get("ready"):
            self.merged, self.state["ready"] = self.weight.exp(), True
        assert self.merged is not None
        return x @ self.merged


def filled() -> nn.Module:
    model = Cached().eval()
    model(X)
    return model


class Carries(Cached):
    """Takes up in each call where the last one stopped."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x @ self.weight + (0 if self.merged is None else self.merged))
        self.merged = y.detach()
        return y


class Collects(Carries):
    """Keeps what it has seen in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight + sum(self.seen)
        self.seen.append(y.detach())
        return y


KEEPERS = [Cached, KeyedByVersion, Flagged, filled, Carries, Collects]


@pytest.mark.parametrize("build", KEEPERS, ids=lambda build: build.__name__)
def test_caches_and_states(build: Callable[[], nn.Module]) -> None:
    assert statuses(checked(build())) == {"weight": "match"}


class KeepsOutput(nn.Linear):
    """Looks at its own gradients, later."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = super().forward(x)
        self.seen.retain_grad()
        return self.seen


class AsksForGradients(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        assert torch.is_grad_enabled()
        return super().forward(x)


class TakesStock(nn.Linear):
    """Runs a backward of its own on something else."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = x.detach().requires_grad_()
            probe.square().sum().backward()
        return super().forward(x)


@pytest.mark.parametrize("layer", [KeepsOutput, AsksForGradients, TakesStock], ids=lambda layer: layer.__name__)
def test_forwards_that_need_autograd(layer: type[nn.Linear]) -> None:
    torch.manual_seed(0)
    assert statuses(checked(layer(4, 3))) == {"weight": "match", "bias": "match"}


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.backbone.requires_grad_(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.backbone(x)))


def test_a_backbone_that_train_freezes() -> None:
    report = checked(Frozen())
    assert statuses(report)["backbone.weight"] == "frozen"
    assert statuses(report)["head.weight"] == "match"


@pytest.mark.parametrize("whose", ["generator", "discriminator"])
def test_a_step_of_a_gan(whose: str) -> None:
    """The discriminator's loss goes backward inside of the closure, the generator's is returned."""
    torch.manual_seed(0)
    generator, discriminator = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def closure() -> Tensor:
        fake = generator(X)
        F.softplus(discriminator(fake.detach()) - discriminator(Y)).mean().backward()
        return F.softplus(-discriminator(fake)).mean()

    report = check_closure({"generator": generator, "discriminator": discriminator}[whose], closure)
    assert report.passed, str(report)


@pytest.mark.slow
def test_a_closure_that_has_gone_backward_is_judged_by_what_it_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())

    def closure() -> Tensor:
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        return loss

    assert "what it leaves in .grad" in "\n".join(check_closure(model, closure).notes)
    assert check_closure(model, closure).passed
    model[0].weight.register_hook(lambda g: 2 * g)
    assert [row.name for row in check_closure(model, closure).mismatches] == ["0.weight"]


class Draws(nn.Linear):
    """Noise from a generator of its own, wherever that is kept."""

    def __init__(self, keep: Callable[[torch.Generator], Any], find: Callable[[Any], torch.Generator]) -> None:
        torch.manual_seed(0)
        super().__init__(4, 3)
        self.kept, self.find = keep(torch.Generator().manual_seed(3)), find

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(3, generator=self.find(self.kept))


KEPT: dict[str, tuple[Callable[[torch.Generator], Any], Callable[[Any], torch.Generator]]] = {
    "attribute": (lambda g: g, lambda kept: kept),
    "list": (lambda g: [g], lambda kept: kept[0]),
    "object": (lambda g: SimpleNamespace(g=g), lambda kept: kept.g),
}


@pytest.mark.parametrize(("keep", "find"), KEPT.values(), ids=KEPT)
def test_a_generator_that_the_model_keeps(keep: Any, find: Any) -> None:
    model = Draws(keep, find)
    state = find(model.kept).get_state()
    assert checked(model).passed
    assert torch.equal(find(model.kept).get_state(), state)


def test_a_generator_of_the_loss_or_of_the_batch() -> None:
    torch.manual_seed(0)
    model, own, given = nn.Linear(4, 3), torch.Generator().manual_seed(3), np.random.default_rng(4)

    def loss_fn(y: Tensor, target: Tensor, rng: np.random.Generator) -> Tensor:
        return F.mse_loss(y, target + torch.randn(3, generator=own) + float(rng.normal()))

    states = own.get_state(), repr(given.bit_generator.state)
    assert check_module(model, loss_fn, (X, Y, given)).passed
    assert torch.equal(own.get_state(), states[0])
    assert repr(given.bit_generator.state) == states[1]


class Writes(nn.Linear):
    """Keeps statistics in a helper, in a nested container and in an array."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(4, 3)
        self.helper = SimpleNamespace(mean=torch.zeros(3), calls=[0])
        self.nested = {"a": [{"b": torch.ones(3)}]}
        self.array = np.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        with torch.no_grad():
            self.helper.mean.mul_(0.9).add_(y.mean(0))
            self.nested["a"][0]["b"].add_(1)
        self.helper.calls.append(1)
        self.array += 1
        return y


def test_what_lies_deep_in_a_model_is_put_back() -> None:
    model = Writes()
    assert checked(model).passed
    assert torch.equal(model.helper.mean, torch.zeros(3))
    assert torch.equal(model.nested["a"][0]["b"], torch.ones(3))
    assert model.helper.calls == [0]
    assert model.array.tolist() == [0, 0, 0]


class Graph:
    """A batch as torch_geometric has it."""

    def __init__(self) -> None:
        self.x, self.weights = X.clone(), np.ones(3, dtype=np.float32)


class WritesToBatch(nn.Linear):
    def forward(self, graph: Graph) -> Tensor:
        graph.x.mul_(2)
        graph.weights *= 2
        graph.seen = True
        return super().forward(graph.x) * torch.from_numpy(graph.weights)


def test_a_batch_that_is_an_object() -> None:
    torch.manual_seed(0)
    graph = Graph()
    report = check_module(WritesToBatch(4, 3), lambda y: y.square().mean(), graph)
    assert report.passed
    assert torch.equal(graph.x, X)
    assert graph.weights.tolist() == [1, 1, 1]
    assert sorted(vars(graph)) == ["weights", "x"]


class Alias(nn.Module):
    """A buffer on the weight's own memory: J depends on it twice, and autograd sees one of the two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.register_buffer("view", self.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + (x @ self.view).tanh()


def test_memory_shared_with_a_buffer_or_a_captured_tensor_is_seen() -> None:
    model = Alias()
    assert [row.name for row in checked(model).mismatches] == ["weight"]
    assert model.view.data_ptr() == model.weight.data_ptr()
    layer = nn.Linear(4, 3)
    row = layer.weight.detach()[1]
    report = check_closure(layer, lambda: F.mse_loss(layer(X), Y) + row.square().sum())
    assert [entry.index[0] for entry in report["weight"].worst if str(entry.status) == "mismatch"] == [1] * 4


class Flat(nn.Module):
    """Two parameters side by side in one buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("flat", torch.randn(15))
        self.weight, self.bias = nn.Parameter(self.flat[:12].view(4, 3)), nn.Parameter(self.flat[12:])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias + self.flat.square().sum()


def test_a_buffer_that_sees_several_parameters() -> None:
    assert {row.name for row in checked(Flat()).mismatches} == {"weight", "bias"}


def test_two_parameters_on_one_memory_are_two() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = nn.Parameter(model[0].weight.data)
    assert checked(model, torch.sum, X).passed


@pytest.mark.slow
def test_checks_in_several_threads() -> None:
    before = Snapshot(model=nn.Linear(1, 1))
    verdicts: dict[int, bool] = {}

    def work(k: int) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        if k % 2:
            model[0].weight.register_hook(lambda g: 2 * g)
        verdicts[k] = check_module(model, F.mse_loss, (X, Y)).passed

    state = torch.get_rng_state()
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {0: True, 1: False, 2: True, 3: False}
    torch.set_rng_state(state)  # the models' own initialisation has moved it
    assert before.changes() == []


def test_under_a_default_device() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3))
    with torch.device("meta"):
        assert check_module(model, F.mse_loss, (X, Y)).passed
    assert torch.get_default_device() == torch.device("cpu")


def test_a_transform_that_an_interrupt_left_in_force_is_ended() -> None:
    model = nn.Linear(4, 3)

    def loss_fn(y: Tensor, target: Tensor) -> Tensor:
        torch._C._functorch._vmap_increment_nesting(2, "error")  # as if Ctrl-C had kept vmap from its end
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_module(model, loss_fn, (X, Y))
    assert not torch._C._functorch.get_interpreter_stack()
    torch.ones(1).requires_grad_()


@functools.lru_cache
def table(length: int) -> Tensor:
    """Filled when it is first asked for."""
    return torch.arange(float(length))


TABLES: dict[int, Tensor] = {}


class Positions(nn.Linear):
    """Keeps tables behind a function, in a dict of its file, and in its class."""

    offsets: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if Positions.offsets is None:
            Positions.offsets = torch.ones(4)
        TABLES.setdefault(4, torch.full((4,), 0.5))
        return super().forward(x * table(4) + TABLES[4] + Positions.offsets)


def test_caches_outside_of_the_model_are_the_callers() -> None:
    torch.manual_seed(0)
    model = Positions(4, 3)
    assert checked(model).passed
    assert (table.cache_info().currsize, TABLES, Positions.offsets) == (0, {}, None)
    model(X)
    kept = table(4), TABLES[4], Positions.offsets
    assert checked(model).passed
    assert all(one is other for one, other in zip(kept, (table(4), TABLES[4], Positions.offsets), strict=True))


def test_a_model_and_a_batch_that_only_go_together_in_float64() -> None:
    torch.manual_seed(0)
    assert checked(nn.Linear(4, 3), F.mse_loss, (X.double(), Y.double())).passed
