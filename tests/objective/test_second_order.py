"""The slope of J along v: its value, its gradient, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.accumulating import Checkpoint
from torch_gradcheck import InvalidRequestError, NonFiniteLossError, check_closure, check_module
from torch_gradcheck.objective.second_order import Slope, direction
from torch_gradcheck.reporting.facts import Status

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


class Cubes(nn.Module):
    """Σ a³ + Σ (10⁶ b)³ / 10¹⁸: two tensors of the same weight in different units; one more that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([1e-6, 2e-6], dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self) -> Tensor:
        return (self.a**3).sum() * self.frozen.sum() + ((1e6 * self.b) ** 3).sum()


def slope_of(model: Cubes) -> Slope:
    return Slope(model, [model.a, model.b, model.unused], seed=0)


def test_the_slope_is_that_along_v_and_its_gradient_that_of_a_double_backward() -> None:
    model = Cubes()
    slope = slope_of(model)
    generator = torch.Generator().manual_seed(0x5EC0)
    v = [direction(each, generator) for each in (model.a, model.b)]
    slope_value = slope()
    expected = (3 * v[0] * model.a**2).sum() + (3e18 * v[1] * model.b**2).sum()
    assert float(slope_value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    slope_value.backward()  # type: ignore[no-untyped-call]
    assert model.a.grad is not None
    assert torch.allclose(model.a.grad, 6 * v[0] * model.a.detach(), rtol=1e-12)
    assert slope.reached == {id(model.a), id(model.b)}
    assert float(slope.loss) == float(model().detach())


def test_without_autograd_the_backward_makes_no_graph() -> None:
    slope = slope_of(Cubes())
    with_graph = slope()
    with torch.no_grad():
        without = slope()
    assert not without.requires_grad
    assert float(without) == float(with_graph.detach())


def test_no_tensor_drowns_another() -> None:
    model = Cubes()
    generator = torch.Generator().manual_seed(1)
    shares = [
        float((3 * direction(each, generator) * scale * each**2).detach().abs().sum())
        for each, scale in ((model.a, 1.0), (model.b, 1e18))
    ]
    assert 1 / 3 < shares[0] / shares[1] < 3


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_v_is_signed_and_of_the_size_of_its_tensor(complex_: bool) -> None:
    tensor = torch.full((50,), 4.0, dtype=torch.complex128 if complex_ else torch.float64)
    v = direction(tensor, torch.Generator().manual_seed(0))
    size = 4 / 2**0.5 if complex_ else 4.0
    numbers = torch.view_as_real(v) if complex_ else v
    assert bool(((numbers.abs() >= size / 2) & (numbers.abs() <= 1.5 * size)).all())
    assert len(numbers.sign().unique()) == 2
    assert direction(torch.zeros(3), torch.Generator().manual_seed(0)).abs().max() > 0.5


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_a_loss_that_is_linear_in_theta_proves_nothing() -> None:
    report = check_module(linear(), lambda y: y.sum(), X, order=2)
    assert not report.passed
    assert [row.status for row in report] == [Status.FLAT, Status.FLAT]
    assert "as where J is linear in it" in report["weight"].reason


def test_a_loss_that_reaches_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the loss does not depend on any of the 2 checked parameters"):
        check_module(linear(), lambda y: torch.ones(()), X, order=2)


def test_a_closure_that_calls_backward_is_refused() -> None:
    model = linear()

    def closure() -> Tensor:
        loss = model(X.to(model.weight.dtype)).square().sum()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    with pytest.raises(InvalidRequestError, match=r"order=2: the closure calls backward\(\) itself"):
        check_closure(model, closure, order=2)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.second, self.first(x), use_reentrant=True)  # type: ignore[no-any-return]


def test_a_reentrant_checkpoint_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"a checkpoint with use_reentrant=True.*use_reentrant=False"):
        check_module(Reentrant(), lambda y: y.square().sum(), X, order=2)


def test_a_function_whose_backward_accumulates_is_refused() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Checkpoint.apply(torch.ones((), requires_grad=True), self.net, x)  # type: ignore[no-any-return]

    with pytest.raises(InvalidRequestError, match="the backward of a Function in J runs another backward"):
        check_module(nn.Sequential(nn.Linear(3, 3), Layer()), lambda y: y.square().sum(), X, order=2)


def test_a_first_order_gradient_that_is_not_finite_is_said_to_be_that() -> None:
    model = linear()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with pytest.raises(NonFiniteLossError, match=r"order=2: J\(θ\) = 0, and its first-order gradient is not finite"):
        check_module(model, lambda y: y.abs().sqrt().sum(), X, order=2)


def test_a_loss_that_is_not_finite_is_refused_though_its_gradient_is() -> None:
    with pytest.raises(NonFiniteLossError, match=r"order=2: J\(θ\) = inf\. A check with order=1 names"):
        check_module(linear(), lambda y: y.square().sum() + torch.tensor(float("inf")), X, order=2)


def test_the_report_says_of_what_it_is() -> None:
    report = check_module(linear(), lambda y: y.square().sum(), X, order=2)
    assert report.proven
    assert str(report).startswith("second-order gradients right: 2 of 2 parameters")
    assert f"⟨v, ∇J⟩ {report.loss:.8g} (noise" in str(report)
    assert any(note.startswith("second order: J is the slope ⟨v, ∇J⟩ of the loss") for note in report.notes)
    assert report.to_dict()["order"] == 2
    assert check_module(linear(), lambda y: y.square().sum(), X).order == 1
