"""Promise: inside a check everything is float64, casts in the model, its batch and its loss included."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.casting import (
    CASTS,
    Cast,
    ComplexNet,
    Energy,
    Forces,
    Penalised,
    casting_net,
    inner_step_loss,
    loss_in_float32,
    loss_with_a_global_tensor,
    loss_with_a_local_tensor,
)
from tests.zoo.losses import probe, squared_error
from tests.zoo.sweeps import in_turn
from tests.zoo.transformers_models import PRETRAINED, Pretrained, built, loss_of
from torch_gradcheck import Report, check_closure, check_module

PRECISE = 1e-6
"""A ratio that float32 anywhere on the way cannot reach: its rounding of J over the step is far more."""


def assert_precise(report: Report) -> None:
    assert {row.status for row in report} == {"match"}, str(report)
    assert report.relative_error < PRECISE, str(report)


@pytest.mark.slow_but_for(5)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("cast", CASTS, ids=lambda cast: cast.id)
def test_a_cast_inside_the_model_is_overridden(cast: Cast, mode: str) -> None:
    model, batch, seen = casting_net(cast)
    report = check_module(model, squared_error, batch, mode=mode)
    assert seen == {torch.float64}
    assert_precise(report)


def test_a_note_names_the_module_whose_cast_was_overridden() -> None:
    model, batch, _ = casting_net(CASTS[0])
    report = check_module(model, squared_error, batch)
    assert any("mixed" in note and "float64" in note for note in report.notes), report.notes
    plain = check_module(nn.Linear(2, 1), squared_error, batch)
    assert not any("float64" in note for note in plain.notes), plain.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_model_in_any_precision_is_checked_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 1)).to(dtype)
    assert_precise(check_module(model, squared_error, (torch.randn(4, 3).to(dtype), torch.randn(4, 1).to(dtype))))


def test_a_model_of_several_precisions() -> None:
    model, batch, _ = casting_net(CASTS[0])
    model.front.to(torch.bfloat16)
    model.front.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype),))
    model.mixed.double()
    assert_precise(check_module(model, squared_error, batch))


def test_complex_parameters_buffers_and_constants() -> None:
    torch.manual_seed(8)
    report = check_module(ComplexNet(), squared_error, (torch.randn(4, 3), torch.randn(4, 2)))
    assert_precise(report)
    assert report["weight"].checked == 12
    assert report["gain"].checked == 2


def test_the_whole_check_under_autocast_is_in_float64() -> None:
    model, batch, _ = casting_net(CASTS[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_precise(check_module(model, squared_error, batch))


# Losses -----------------------------------------------------------------------------------------------------------


class WeightedLoss(nn.Module):
    """A loss module with a float32 buffer, a plain tensor and a submodule that has a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.3, 1.7]))
        self.shift = torch.tensor(0.1)
        self.cross = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.7]))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return self.cross(y * self.scale + self.shift, t) + nn.functional.cross_entropy(y.float(), t)


LOSSES: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "global tensor": lambda: loss_with_a_global_tensor,
    "local tensor": loss_with_a_local_tensor,
    "cast": lambda: loss_in_float32,
    "mse": nn.MSELoss,
    "pos_weight": lambda: nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.3, 1.7])),
}


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_a_loss_that_holds_float32(make: Callable[[], Callable[..., Tensor]]) -> None:
    torch.manual_seed(8)
    assert_precise(check_module(nn.Linear(3, 2), make(), (torch.randn(4, 3), torch.rand(4, 2))))


def test_a_loss_module_with_buffers() -> None:
    torch.manual_seed(8)
    labels = torch.tensor([0, 1, 1, 0])
    assert_precise(check_module(nn.Linear(3, 2), WeightedLoss(), (torch.randn(4, 3), labels)))


def test_a_closure_that_captures_float32() -> None:
    torch.manual_seed(8)
    model, x, t = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    criterion, decayed = nn.HuberLoss(), [model.weight]
    closure = lambda: criterion(model(x), t) + 0.1 * sum(p.square().sum() for p in decayed)  # noqa: E731
    assert_precise(check_closure(model, closure))


def test_a_closure_that_runs_zero_grad_and_backward_like_those_of_torch_optim() -> None:
    torch.manual_seed(8)
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def closure() -> Tensor:
        model.zero_grad()
        loss = probe(model(x))
        loss.backward(retain_graph=True)
        return loss

    assert_precise(check_closure(model, closure))
    assert model.weight.grad is None


def test_a_model_of_forces() -> None:
    torch.manual_seed(8)
    report = check_module(Forces(), squared_error, (torch.randn(4, 2), torch.randn(4, 2)))
    assert report.passed
    assert report["layers.0.weight"].status == "match"
    assert report["layers.2.bias"].status in {"flat", "unused"}  # a constant of the energy exerts no force
    assert report.relative_error < PRECISE


def test_a_gradient_penalty() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    points = torch.randn(4, 2)
    report = check_module(model, Penalised(model), (points, points))
    assert {row.status for row in report} == {"match"}, str(report)


def test_an_energy_with_forces_in_the_closure() -> None:
    torch.manual_seed(8)
    model, x, forces = Energy(), torch.randn(4, 2), torch.randn(4, 2)

    def closure() -> Tensor:
        positions = x.clone().requires_grad_()
        energy = model(positions)
        (grad,) = torch.autograd.grad(energy, positions, create_graph=True)
        return energy**2 + squared_error(-grad, forces)

    assert_precise(check_closure(model, closure))


def test_a_differentiable_inner_step() -> None:
    torch.manual_seed(8)
    model, x, t = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(4, 2), torch.randn(4, 1)
    assert_precise(check_closure(model, lambda: inner_step_loss(model, x, t)))


# Batches ----------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    points: Tensor
    extra: dict[str, list[Tensor]]


@dataclass(frozen=True)
class FrozenSample:
    points: Tensor
    extra: dict[str, list[Tensor]]


Pair = namedtuple("Pair", ["points", "extra"])


class Reader(nn.Module):
    """Reads points and a shift out of one nested input, and insists on one precision."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, sample: Any) -> Tensor:
        points, shift = sample.points, sample.extra["shift"][0]
        assert points.dtype == shift.dtype == torch.float64
        return self.linear(points + shift)


@pytest.mark.parametrize("kind", [Sample, FrozenSample, Pair])
def test_a_batch_of_records(kind: Any) -> None:
    torch.manual_seed(8)
    sample = kind(torch.randn(4, 3), {"shift": [torch.randn(3)]})
    inputs = (sample,) if kind is Pair else sample
    assert_precise(check_module(Reader(), squared_error, (inputs, torch.randn(4, 2))))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, *, first: Tensor, rest: tuple[Tensor, dict[str, Tensor]], flag: bool, name: str) -> Tensor:
        assert flag is True
        assert name == "kept"
        return self.linear(first + rest[0]) * rest[1]["scale"]


@pytest.mark.parametrize("mapping", [dict, OrderedDict])
def test_a_batch_of_keyword_arguments(mapping: type) -> None:
    torch.manual_seed(8)
    rest = (torch.randn(3), {"scale": torch.rand(2)})
    keywords = mapping(first=torch.randn(4, 3), rest=rest, flag=True, name="kept")
    assert_precise(check_module(Keywords(), probe, keywords))
    assert_precise(check_module(Keywords(), squared_error, (keywords, torch.randn(4, 2))))


@pytest.mark.parametrize("batch", [list, tuple])
def test_inputs_that_are_several_arguments(batch: type) -> None:
    torch.manual_seed(8)
    inputs = batch([torch.randn(4, 3), torch.randn(4, 2)])
    assert_precise(check_module(nn.Bilinear(3, 2, 2), squared_error, batch([inputs, torch.randn(4, 2)])))


# transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mode"),
    in_turn([(model,) for model in PRETRAINED], [("train",), ("eval",)]),
    ids=lambda value: getattr(value, "id", value),
)
def test_a_model_of_transformers(model: Pretrained, mode: str) -> None:
    network, batch = built(model)
    report = check_module(network, loss_of, batch, mode=mode, include=model.include)
    assert report.passed, str(report)
    assert len([row for row in report if row.status == "match"]) >= 0.7 * len(report), str(report)
    assert {row.status for row in report} <= {"match", "flat"}, str(report)
    assert report.relative_error < 1e-5


@pytest.mark.slow
def test_outputs_of_transformers_as_a_batch() -> None:
    from transformers import BatchEncoding
    from transformers.modeling_outputs import BaseModelOutput

    class Head(nn.Linear):
        def forward(self, output: Any) -> Tensor:
            return super().forward(output.last_hidden_state + output["hidden_states"][0])

    torch.manual_seed(8)
    output = BaseModelOutput(last_hidden_state=torch.randn(2, 3), hidden_states=(torch.randn(2, 3),))
    assert_precise(check_module(Head(3, 2), squared_error, ((output,), torch.randn(2, 2))))
    encoding = BatchEncoding({"first": torch.randn(4, 3), "rest": (torch.randn(3), {"scale": torch.rand(2)})})
    encoding.update({"flag": True, "name": "kept"})
    assert_precise(check_module(Keywords(), probe, encoding))


@pytest.mark.slow
def test_the_output_of_transformers_keeps_its_loss() -> None:
    network, batch = built(PRETRAINED[0])
    loss_fn = lambda output: output["loss"] + output.logits.float().mean()  # noqa: E731
    report = check_module(network, loss_fn, batch, include="*norm*")
    assert {row.status for row in report} == {"match"}, str(report)
