"""The models of `processes.py`: each way that a check has to evaluate J, on models large enough to be shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import large
from speed import Encoder, mlp
from torch_gradcheck import BlindSpots, Report, blind_spots, check_module
from wrong import MISTAKES, changed


@dataclass(frozen=True)
class Case:
    """A model, its loss and batch, and how it is checked.

    Attributes:
        name: of the model, and of what is tried on it.
        place: the module at whose output the gradient is 5 % too large; "" for a right model.
        options: of `check_module`.
        plants: whether it is not checked, but `blind_spots` is asked.
        wrap: from the model and the group to what is checked, such as the model wrapped in DDP.
    """

    name: str
    model: nn.Module
    loss_fn: Callable[..., Tensor]
    batch: Any
    place: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    plants: bool = False
    wrap: Callable[[nn.Module, dist.ProcessGroup], nn.Module] = lambda model, _: model

    @property
    def coordinates(self) -> int:
        """The size of θ."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def classifier(name: str, model: nn.Module, inputs: Tensor, classes: int, **more: Any) -> Case:
    """A classifier under the cross-entropy, by the exact method."""
    options = {"method": "exact"} | more.pop("options", {})
    return Case(name, model, F.cross_entropy, (inputs, torch.arange(len(inputs)) % classes), options=options, **more)


def layers(*units: int) -> Case:
    """Linear layers with tanh between them, by the record of J."""
    size = "-".join(map(str, units))
    return classifier(f"MLP {size}", mlp(*units[:-1], last=units[-1]), torch.randn(32, units[0]), units[-1])


def convnet(*widths: int, size: int, hidden: int) -> nn.Sequential:
    """Convolutions with tanh and average pooling, and two linear layers."""
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Conv2d(before, after, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
    features = widths[-1] * (size >> len(widths) - 1) ** 2
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 10))


def convolutions() -> Case:
    """An image classifier by the record of J."""
    return classifier("convnet", convnet(3, 32, 64, size=32, hidden=160), torch.randn(8, 3, 32, 32), 10)


def transformer() -> Case:
    """Two layers of a transformer encoder by the record of J."""
    return classifier("transformer encoder", Encoder(), torch.randn(12, 24, 24), 4)


class BySin(torch.autograd.Function):
    """sin(x) of memory that numpy has had in between: no record of J gets past it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """sin(x)."""
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy()).sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """grad · cos(x)."""
        (x,) = ctx.saved_tensors
        slope: Tensor = grad * x.cos()
        return slope


class Recurrent(nn.Module):
    """An LSTM cell in a loop of Python, and a classifier of its last state by way of numpy."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.inlet, self.cell = nn.Linear(features, features), nn.LSTMCell(features, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, classes)."""
        state = None
        for step in self.inlet(x).unbind(1):
            state = self.cell(step, state)
        assert state is not None
        scores: Tensor = self.head(BySin.apply(state[0]))  # type: ignore[no-untyped-call]
        return scores


def recurrent(features: int = 16, hidden: int = 24) -> Case:
    """No record of J: one coordinate at a time."""
    model = Recurrent(features, hidden, 5)
    return classifier("LSTM cell, numpy", model, torch.randn(16, 12, features), 5)


def kinks(*units: int) -> Case:
    """Weights, biases and inputs that are whole numbers, so that many units of ReLU stand at 0."""
    parts: list[nn.Module] = []
    for before, after in pairwise(units[:-1]):
        parts += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Linear(units[-2], units[-1]))
    with torch.no_grad():
        for parameter in model[:-1].parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
    inputs = torch.randint(-2, 3, (16, units[0])).float()
    return classifier(f"kinks, MLP {'-'.join(map(str, units))}", model, inputs, units[-1])


def of_large(key: str, **more: Any) -> Case:
    """A model of `large.py`, by the projected method."""
    case = large.built(key)
    options = {"method": "projected"}
    return Case(case.name, case.model, case.loss_fn, (case.inputs, case.targets), options=options, **more)


def residual() -> Case:
    """A ResNet of half the width."""
    model = large.ResNet((32, 64, 128), blocks=2)
    return classifier("ResNet", model, torch.randn(2, 3, 24, 24), 10)


def in_ddp(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """The model wrapped in DistributedDataParallel."""
    return DistributedDataParallel(model, process_group=group)


def sharded(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """The model with its parameters sharded over the ranks by FSDP2."""
    from torch.distributed.fsdp import fully_shard  # half a second that the other models need not wait for

    mesh = init_device_mesh("cpu", (dist.get_world_size(group),))
    fully_shard(model, mesh=mesh)
    return model


CASES: dict[str, Callable[[], Case]] = {
    "convnet": convolutions,
    "mlp": lambda: layers(256, 384, 384, 10),
    "transformer": transformer,
    "recurrent": recurrent,
    "kinks": lambda: kinks(64, 64, 64, 10),
    "wrong": lambda: replace(layers(256, 384, 384, 10), name="MLP, gradients 5 % too large", place="2"),
    "wrong-recurrent": lambda: replace(recurrent(), name="LSTM cell, 5 % too large", place="inlet"),
    "resnet": lambda: of_large("resnet"),
    "wrong-resnet": lambda: replace(of_large("resnet"), name="ResNet-18, 5 % too large", place="layer3.0"),
    "gpt": lambda: of_large("gpt"),
    "planted": lambda: replace(residual(), name="ResNet, planted faults", plants=True),
    "ddp": lambda: replace(convolutions(), name="convnet in DDP", wrap=in_ddp),
    "fsdp2": lambda: replace(convolutions(), name="convnet in FSDP2", wrap=sharded),
}

SMALL: dict[str, Callable[[], Case]] = {
    "small-mlp": lambda: layers(16, 24, 24, 5),
    "small-recurrent": lambda: recurrent(4, 4),
    "small-wrong": lambda: replace(layers(16, 24, 24, 5), name="MLP 16-24-24-5, 5 % too large", place="2"),
    "small-resnet": lambda: of_large("small-resnet"),
    "small-planted": lambda: replace(layers(16, 8, 5), name="MLP 16-8-5, planted faults", plants=True),
}


def built(key: str) -> Case:
    """The case of that name, the same one each time."""
    torch.manual_seed(0)
    return (CASES | SMALL)[key]()


def check(case: Case, group: dist.ProcessGroup) -> Report:
    """The check of the case, by the ranks of the group."""
    model = case.wrap(case.model, group)
    place = case.model.get_submodule(case.place)
    with changed(place, MISTAKES["5 % too large"]) if case.place else nullcontext():
        return check_module(model, case.loss_fn, case.batch, group=group, progress=False, **case.options)


def planted(case: Case, group: dist.ProcessGroup) -> BlindSpots:
    """What a check of the case could not see, by the ranks of the group."""
    return blind_spots(case.model, case.loss_fn, case.batch, group=group, progress=False)


def loss_of(case: Case, model: nn.Module) -> Tensor:
    """J by that model, which is in float64."""
    inputs, *targets = case.batch
    return case.loss_fn(model(inputs.double() if inputs.is_floating_point() else inputs), *targets)
