"""Promise: no correct training step is accused, in whatever precision; what a loop does wrong is found and named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn

from tests.zoo.kernels import skip_without_lstm
from tests.zoo.sweeps import in_turn
from tests.zoo.training import MODELS, REGIMES, Regime, Trained, backward, built
from torch_gradcheck import GradientMonitor, Report, check_module

CASES = [pytest.param(model, regime, id=f"{model}, {regime}") for model in MODELS for regime in REGIMES]


def watched(trained: Trained, regime: Regime, spoil: Callable[[nn.Module], None] | None = None) -> Report:
    """The report on one step, whose forward the monitor sees."""
    monitor = GradientMonitor(trained.model, trained.loss_fn, on_mismatch="record")
    torch.manual_seed(9)
    backward(trained, regime)
    if spoil is not None:
        spoil(trained.model)
    report = monitor.step(trained.batch)
    assert report is not None
    monitor.close()
    return report


def statuses(report: Report) -> dict[str, str]:
    assert report.in_grad is not None
    return {row.name: str(row.status) for row in report.in_grad}


@functools.cache
def right_report(model: str, regime: str) -> Report:
    if model == "recurrent":
        skip_without_lstm(REGIMES[regime])
    return watched(built(model, REGIMES[regime]), REGIMES[regime])


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize(("model", "regime"), CASES)
def test_a_correct_step_is_not_accused(model: str, regime: str) -> None:
    report = right_report(model, regime)
    assert report.passed, str(report.in_grad)
    if regime in ("float32", "float64"):
        assert set(statuses(report).values()) <= {"match", "flat"}, str(report.in_grad)


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("model", ["mlp", "spectral", "fitted", "stagnating", "underflowing"])
def test_a_correct_step_that_nobody_saw_is_not_accused(model: str, regime: str) -> None:
    """The autocast has to be told from the gradients; a random step cannot be judged."""
    trained = built(model, REGIMES[regime])
    backward(trained, REGIMES[regime])
    report = check_module(trained.model, trained.loss_fn, trained.batch, gradients="grad")
    assert not report.mismatches, str(report)
    if model == "mlp":
        assert {str(row.status) for row in report} == {"undecided"}
        assert "random" in report.parameters[0].reason


def double(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(2)


def spoil_a_tenth(model: nn.Module) -> None:
    """A tenth of the entries of every gradient, and at least one, those that matter most."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        flat = parameter.grad.to_dense().flatten()
        largest = flat.abs().topk(max(1, len(flat) // 10)).indices
        flat[largest] = 0
        parameter.grad = flat.view(parameter.shape)


SPOILED = [
    pytest.param(model, regime, spoil, id=f"{model}, {regime}, {spoil.__name__}")
    for model, spoil, regime in in_turn(
        list(product(MODELS, [double, spoil_a_tenth])), [("float32",), ("bfloat16",), ("autocast bfloat16",)]
    )
]
"""Each model with each mistake, in one of the precisions in turn."""


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(("model", "regime", "spoil"), SPOILED)
def test_a_wrong_step_is_found_wherever_something_was_proven(
    model: str, regime: str, spoil: Callable[[nn.Module], None]
) -> None:
    right = statuses(right_report(model, regime))
    wrong = statuses(watched(built(model, REGIMES[regime]), REGIMES[regime], spoil))
    assert [name for name in right if right[name] == "match" and wrong[name] != "mismatch"] == []
    assert "match" in right.values() or model in ("underflowing", "stagnating", "fitted")


def rounded_to_bfloat16(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.copy_(parameter.grad.bfloat16())


def noise_in_one_small_tensor(model: nn.Module) -> None:
    """Of 10 % of its size."""
    grad = min((p.grad for p in model.parameters() if p.grad is not None and p.numel() >= 4), key=torch.numel)
    generator = torch.Generator().manual_seed(0)
    size = grad.double().square().mean().sqrt()
    grad.add_((0.1 * size * torch.randn(grad.shape, generator=generator, dtype=torch.float64)).to(grad))


HIDDEN = [
    *in_turn(
        [("attentive", rounded_to_bfloat16), ("recurrent", rounded_to_bfloat16), ("noisy", rounded_to_bfloat16)],
        [("float32",), ("float16",), ("autocast float16",)],
    ),
    *in_turn(
        [(model, noise_in_one_small_tensor) for model in ("recurrent", "noisy", "attentive")],
        [("float32",), ("bfloat16",), ("autocast bfloat16",)],
    ),
]
"""Each model with each mistake, in one of the precisions in turn."""


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize(("model", "spoil", "regime"), HIDDEN)
def test_what_the_bars_of_a_coarse_precision_would_hide_is_found(
    model: str, spoil: Callable[[nn.Module], None], regime: str
) -> None:
    right = right_report(model, regime)
    assert right.passed, str(right.in_grad)
    report = watched(built(model, REGIMES[regime]), REGIMES[regime], spoil)
    assert report.in_grad is not None
    assert report.in_grad.mismatches, str(report.in_grad)
    if spoil is noise_in_one_small_tensor:
        assert len(report.in_grad.mismatches) == 1
    else:
        assert 2 * len(report.in_grad.mismatches) > len(report.in_grad)


def test_a_match_says_what_rounding_hides() -> None:
    report = right_report("noisy", "bfloat16").in_grad
    assert report is not None
    row = report["inner.weight"]
    assert row.status == "match"
    assert "may move a right gradient by" in row.reason
    assert "% of a gradient that matches" in report.notes[0]
    float32 = right_report("noisy", "float32").in_grad
    assert float32 is not None
    assert float32["inner.weight"].reason == ""


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("regime", REGIMES)
def test_what_is_no_number_is_always_wrong(regime: str) -> None:
    trained = built("mlp", REGIMES[regime])
    backward(trained, REGIMES[regime])
    weight = trained.model.get_parameter("4.weight")
    assert weight.grad is not None
    weight.grad[1, 2] = torch.inf
    report = check_module(trained.model, trained.loss_fn, trained.batch, gradients="grad")
    assert [row.name for row in report.mismatches] == ["4.weight"]
    assert report["4.weight"].mismatched == 1
    assert "not finite" in report["4.weight"].reason


def test_a_parameter_without_grad_is_wrong_even_where_nobody_saw_the_random_step() -> None:
    trained = built("mlp", REGIMES["float32"])
    backward(trained, REGIMES["float32"])
    trained.model.get_parameter("0.weight").grad = None
    report = check_module(trained.model, trained.loss_fn, trained.batch, gradients="grad")
    assert [(row.name, str(row.diagnosis.kind)) for row in report.mismatches if row.diagnosis] == [
        ("0.weight", "missing")
    ]
    assert report["4.weight"].status == "undecided"


class WrongInFloat32(torch.autograd.Function):
    """A backward that is right in float64, where a check of the model looks, and 10 % off in float32."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        factor = 1.1 if x.dtype == torch.float32 else 1.0
        return grad * (1 - torch.tanh(x) ** 2) * factor


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.outer(WrongInFloat32.apply(self.inner(x)))


def test_a_backward_that_is_wrong_in_the_steps_own_precision_only_is_found() -> None:
    torch.manual_seed(0)
    trained = Trained(Wrong(), nn.MSELoss(), (torch.randn(7, 4), torch.randn(7, 2)))
    assert check_module(*trained).passed
    report = watched(trained, REGIMES["float32"])
    assert {row.name for row in report.mismatches} == {"inner.weight", "inner.bias"}
