"""`perturb=`: mistakes that weights of exactly 1 or 0 hide are found, correct models stay right, nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.snapshot import Snapshot
from torch_gradcheck import (
    GradientMonitor,
    InvalidRequestError,
    NonFiniteLossError,
    blind_spots,
    check_closure,
    check_module,
)

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def squared(y: Tensor) -> Tensor:
    return y.square().mean()


class RMSNormFunction(torch.autograd.Function):
    """x / rms(x) · weight; a backward that `forgets` multiplies nothing by the weight on the way to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, forgets: bool) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x * scale, scale, weight)
        ctx.forgets = forgets
        return x * scale * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        normed, scale, weight = ctx.saved_tensors
        inner = grad if ctx.forgets else grad * weight
        dx = scale * (inner - normed * (inner * normed).mean(-1, keepdim=True))
        return dx, (grad * normed).sum(0), None


class RMSNorm(nn.Module):
    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.weight, self.forgets = nn.Parameter(torch.ones(4)), forgets

    def forward(self, x: Tensor) -> Tensor:
        return RMSNormFunction.apply(x, self.weight, self.forgets)


class GateFunction(torch.autograd.Function):
    """gate · tanh(x), gate a number; a backward that `forgets` is off where the gate is not 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, forgets: bool) -> Tensor:
        ctx.save_for_backward(x, gate)
        ctx.forgets = forgets
        return gate * torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gate = ctx.saved_tensors
        slope = 1 if ctx.forgets else 1 - torch.tanh(x).square()
        return grad * gate * slope, (grad * torch.tanh(x)).sum(), None


class Branch(nn.Module):
    """x + gate · tanh(x), as ReZero and LoRA begin: with a gate of 0."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.gate, self.forgets = nn.Parameter(torch.zeros(())), forgets

    def forward(self, x: Tensor) -> Tensor:
        return x + GateFunction.apply(x, self.gate, self.forgets)


class BiasedFunction(torch.autograd.Function):
    """tanh(x + bias); a backward that `forgets` the bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, forgets: bool) -> Tensor:
        ctx.save_for_backward(x if forgets else x + bias)
        return torch.tanh(x + bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (inner,) = ctx.saved_tensors
        slope = grad * (1 - torch.tanh(inner).square())
        return slope, slope.sum(0), None


class Biased(nn.Module):
    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.bias, self.forgets = nn.Parameter(torch.zeros(4)), forgets

    def forward(self, x: Tensor) -> Tensor:
        return BiasedFunction.apply(x, self.bias, self.forgets)


def within(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))


HIDDEN = {"a weight of 1": RMSNorm, "a gate of 0": Branch, "a bias of 0": Biased}


@pytest.mark.parametrize("layer", HIDDEN.values(), ids=HIDDEN)
def test_a_mistake_that_the_initial_value_hides_is_found_away_from_it(layer: Callable[[bool], nn.Module]) -> None:
    assert check_module(within(layer(True)), squared, X).passed
    report = check_module(within(layer(True)), squared, X, perturb=0.1)
    assert not report.passed
    assert report.culprit == "1"


@pytest.mark.parametrize("perturb", [0.1, 1.0])
@pytest.mark.parametrize("layer", HIDDEN.values(), ids=HIDDEN)
def test_the_right_twin_stays_right(layer: Callable[[bool], nn.Module], perturb: float) -> None:
    assert check_module(within(layer(False)), squared, X, perturb=perturb).passed


def test_a_closure_is_perturbed_too() -> None:
    model = within(RMSNorm(True))
    assert check_closure(model, lambda: squared(model(X))).passed
    assert not check_closure(model, lambda: squared(model(X)), perturb=0.1).passed


def test_blind_spots_name_it_and_the_reason_until_it_is_perturbed() -> None:
    [row] = [row for row in blind_spots(within(RMSNorm(True)), squared, X) if row.module == "1" and not row.found]
    assert row.fault == "weight left out of the gradient of the input"
    assert row.reason == "weight is exactly 1 in every entry"
    right = within(RMSNorm(False))
    assert not all(row.found for row in blind_spots(right, squared, X) if row.module == "1")
    assert all(row.found for row in blind_spots(right, squared, X, perturb=0.1) if row.module == "1")


PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("parametrized", PARAMETRIZED.values(), ids=PARAMETRIZED)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_what_is_computed_from_a_parameter_follows_it(
    parametrized: Callable[[nn.Module], nn.Module], mode: Any
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrized(nn.Linear(4, 3)), nn.Tanh())
    at_theta = check_module(model, squared, X, mode=mode)
    report = check_module(model, squared, X, mode=mode, perturb=0.1)
    assert report.passed
    assert report.loss != at_theta.loss


class SharesMemory(nn.Module):
    """A buffer that is the weight seen another way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", self.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.get_buffer("seen").sum()


def test_a_buffer_on_the_memory_of_a_parameter_moves_with_it() -> None:
    model = SharesMemory()
    losses = []

    def loss(y: Tensor) -> Tensor:
        losses.append(torch.equal(model.weight.detach(), model.seen))  # type: ignore[arg-type]
        return squared(y)

    check_module(model, loss, X, perturb=0.1)
    assert losses[0]


def test_every_evaluation_starts_from_the_moved_theta_where_the_forward_writes_to_it() -> None:
    class Halves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x).square()
            with torch.no_grad():
                self.bias.mul_(0.5)
            return result

    torch.manual_seed(0)
    at_theta, moved = (check_module(Halves(4, 2), torch.sum, X, perturb=perturb).loss for perturb in (0.0, 0.1))
    assert at_theta != moved


def test_which_parameters_are_on_trial_does_not_change_where() -> None:
    model = within(nn.Tanh())
    some = check_module(model, squared, X, perturb=0.1, include="2.*")
    assert some.loss == check_module(model, squared, X, perturb=0.1).loss
    assert some.loss != check_module(model, squared, X, perturb=0.1, seed=1).loss


def test_the_report_says_where() -> None:
    notes = check_module(within(nn.Tanh()), squared, X, perturb=0.5, seed=3).notes
    assert "checked at θ + 0.5 · s · N(0, 1), drawn from seed 3, and not at the model's own θ" in notes[0]
    assert not any("N(0, 1)" in note for note in check_module(within(nn.Tanh()), squared, X).notes)


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_nothing_changes(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LSTM(4, 3))
    squared(model(X)[0]).backward()
    before = Snapshot(model=model)
    check_module(model, lambda y: squared(y[0]), X, perturb=0.1, method=method, mode="train")
    assert before.changes() == []


def test_nothing_changes_where_the_loss_is_not_finite() -> None:
    model = within(nn.LayerNorm(4))
    before = Snapshot(model=model)
    with pytest.raises(NonFiniteLossError):
        check_module(model, lambda y: (y.mean() * 0 - 1).log(), X, perturb=0.1)
    assert before.changes() == []


class Logarithm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(50))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.log().sum() + x.sum()


def test_a_loss_that_is_not_finite_there_says_that_perturb_may_be_to_blame() -> None:
    assert check_module(Logarithm(), torch.sum, X).passed
    with pytest.raises(NonFiniteLossError, match=r"perturb=2, away from the model's own θ: try a smaller one"):
        check_module(Logarithm(), torch.sum, X, perturb=2)
    with pytest.raises(NonFiniteLossError) as own:
        check_module(Logarithm(), lambda y: y * float("nan"), X)
    assert "perturb" not in str(own.value)


@pytest.mark.parametrize("gradients", ["grad", {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}])
def test_given_gradients_belong_to_the_models_own_theta(gradients: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"perturb=0\.1 moves θ, and gradients="):
        check_module(nn.Linear(4, 2), squared, X, gradients=gradients, perturb=0.1)
    check_module(nn.Linear(4, 2), squared, X, gradients=gradients, perturb=0.0)


def test_a_monitor_has_no_such_option() -> None:
    with pytest.raises(TypeError, match="perturb"):
        GradientMonitor(nn.Linear(4, 2), squared, perturb=0.1)  # type: ignore[call-arg]
