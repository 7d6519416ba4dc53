"""Models and losses that use vmap, grad, jvp or jacrev of torch.func are checked as any others."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state

from torch_gradcheck import blind_spots, check_closure, check_module
from torch_gradcheck.errors import NonDeterministicLossError, NonFiniteLossError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
"""torch itself scripts functions where forward mode is used first."""

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Sine(torch.autograd.Function):
    """sin x, whose gradient is `factor` times too large."""

    generate_vmap_rule = True
    factor = 1.01

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos() * Sine.factor


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin() + x.detach().cos()


class WrongSine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sine.apply(x)


class Net(nn.Module):
    """An inner network under a transform, whose output goes on through a last layer."""

    def __init__(self, transform: Callable[[nn.Module, Tensor], Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh() if inner is None else inner, nn.Linear(3, 1))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(self.inner, self.scale * x)


def total(f: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x).sum()


def functional(f: nn.Module, x: Tensor) -> Tensor:
    return torch.vmap(functional_call, in_dims=(None, None, 0))(f, dict(f.named_parameters()), (x,))


VALUES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vmap": lambda f, x: torch.vmap(f)(x),
    "vmap twice": lambda f, x: torch.vmap(torch.vmap(f), in_dims=1)(torch.stack([x, -x], dim=1)),
    "functional": functional,
}
"""Transforms that give what the network gives."""

DERIVATIVES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "grad": lambda f, x: grad(total(f))(x),
    "vmap of grad": lambda f, x: torch.vmap(grad(total(f)))(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacrev": lambda f, x: torch.vmap(jacrev(f))(x),
    "jacfwd": lambda f, x: torch.vmap(jacfwd(f))(x),
    "hessian": lambda f, x: torch.vmap(hessian(total(f)))(x),
}
"""Transforms that differentiate it."""


def loss(y: Tensor) -> Tensor:
    return y.square().mean()


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("options", [{}, {"hold_detached": True}], ids=["plain", "held"])
@pytest.mark.parametrize("transform", [*VALUES.values(), *DERIVATIVES.values()], ids=[*VALUES, *DERIVATIVES])
def test_a_right_model(transform: Callable[[nn.Module, Tensor], Tensor], options: Any) -> None:
    torch.manual_seed(1)
    report = check_module(Net(transform), loss, X, **options)
    assert not report.mismatches
    assert report.passed
    assert {row.status for row in report} <= {"match", "unused"}


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("inner", [Detached, WrongSine])
@pytest.mark.parametrize("transform", VALUES.values(), ids=VALUES)
def test_a_wrong_one(transform: Callable[[nn.Module, Tensor], Tensor], inner: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    report = check_module(Net(transform, inner()), loss, X)
    assert {row.name for row in report.mismatches} == {"scale", "inner.0.weight", "inner.0.bias"}
    assert report.culprit == ""
    assert any(re.search("the mistake is in (the backward of )?the model itself", note) for note in report.notes)


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("transform", DERIVATIVES.values(), ids=DERIVATIVES)
def test_a_wrong_gradient_beside_a_derivative(transform: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    model = Net(lambda f, x: transform(f, x) * x.detach().sum())
    report = check_module(model, loss, X)
    assert [row.name for row in report.mismatches] == ["scale"]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_loss_that_maps_the_model(wrong: bool) -> None:
    torch.manual_seed(1)
    model = nn.Linear(4, 2)
    if wrong:
        model.bias.register_hook(lambda g: 1.01 * g)
    report = check_closure(model, lambda: torch.vmap(model)(X.double()).square().mean())
    assert [row.name for row in report.mismatches] == (["bias"] if wrong else [])


class Ensemble(nn.Module):
    """Three networks as one, by stacked parameters and a skeleton without numbers; dropout differs among them."""

    def __init__(self) -> None:
        super().__init__()
        nets = [nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)) for _ in range(3)]
        stacked, _ = stack_module_state(nets)
        self.weights = nn.ParameterList([nn.Parameter(each.detach()) for each in stacked.values()])
        self.names, self.skeleton = list(stacked), (nets[0].to("meta"),)

    def forward(self, x: Tensor) -> Tensor:
        def one(weights: Any, x: Tensor) -> Any:
            return functional_call(self.skeleton[0], weights, (x,))

        weights = dict(zip(self.names, self.weights, strict=True))
        return torch.vmap(one, in_dims=(0, None), randomness="different")(weights, x)


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("wrong", [False, True])
def test_an_ensemble_of_stacked_parameters(wrong: bool, mode: Any) -> None:
    torch.manual_seed(1)
    model = Ensemble()
    if wrong:
        model.weights[1].register_hook(lambda g: 1.01 * g)
    report = check_module(model, loss, X, mode=mode)
    assert [row.name for row in report.mismatches] == (["weights.1"] if wrong else [])
    assert model.skeleton[0][0].weight.is_meta


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x).log() * 0 + x


class Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        return x * Counting.calls


@pytest.mark.parametrize(("inner", "error"), [(NotANumber, NonFiniteLossError), (Counting, NonDeterministicLossError)])
def test_the_module_inside_is_named(inner: Callable[[], nn.Module], error: Any) -> None:
    with pytest.raises(error, match=rf"'inner\.1' \({inner.__name__}\)"):  # type: ignore[attr-defined]
        check_module(Net(VALUES["vmap"], inner()), loss, X)


@pytest.mark.slow
def test_faults_are_planted_inside_of_a_map() -> None:
    torch.manual_seed(1)
    spots = blind_spots(Net(VALUES["vmap"]), loss, X)
    found = {(spot.module, spot.found) for spot in spots if spot.fault.startswith("output gradient")}
    assert {("inner.0", True), ("inner.2", True)} <= found


@pytest.mark.slow
def test_what_a_step_left_in_grad() -> None:
    torch.manual_seed(1)
    for transform in (VALUES["vmap"], DERIVATIVES["jvp"]):
        model = Net(transform)
        loss(model(X)).backward()
        assert check_module(model, loss, X, gradients="grad").passed
        model.inner[0].weight.grad *= 1.01
        assert [row.name for row in check_module(model, loss, X, gradients="grad").mismatches] == ["inner.0.weight"]


class Keeps(nn.Linear):
    """Remembers its input, whatever that is."""

    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return super().forward(x)


def left_by(transform: Callable[[Callable[[Tensor], Tensor]], Any]) -> nn.Module:
    """A model in which a transform that failed has left one of its tensors."""
    torch.manual_seed(1)
    model = Keeps(4, 2)

    def fails(x: Tensor) -> Tensor:
        model(x)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        transform(fails)
    return model


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize(
    "transform",
    [lambda f: torch.vmap(f)(X), lambda f: grad(f)(X), lambda f: torch.vmap(grad(f))(X)],
    ids=["vmap", "grad", "vmap of grad"],
)
def test_a_tensor_that_a_failed_transform_has_left(transform: Any, wrong: bool) -> None:
    model = left_by(transform)
    kept = vars(model)["kept"]
    if wrong:
        model.get_parameter("bias").register_hook(lambda g: 1.01 * g)
    report = check_module(model, loss, X)
    assert [row.name for row in report.mismatches] == (["bias"] if wrong else [])
    assert vars(model)["kept"] is kept
