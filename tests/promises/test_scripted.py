"""Modules that torch.jit has compiled are checked inside of a model, and as one; nothing of them changes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import blind_spots, check_module
from torch_gradcheck.errors import InvalidRequestError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Right(nn.Module):
    """Counts its calls, holds a buffer, a tensor and a list, and casts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.calls = nn.Linear(3, 2), nn.BatchNorm1d(2), 0
        self.register_buffer("shift", torch.randn(2))
        self.scale, self.sizes = torch.randn(2), [1.5, 2.5]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = torch.tanh(self.norm(self.linear(x) + self.shift)).to(torch.float32)
        return y * self.scale + torch.ones(2, dtype=torch.float32) * self.sizes[0]


class Detached(Right):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.linear(x)
        return y.sin() + y.detach()


def scripted(module: nn.Module) -> Any:
    return torch.jit.script(module)


def traced(module: nn.Module) -> Any:
    return torch.jit.trace(module.eval(), torch.randn(3, 3))


def loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.jit.save(scripted(module), file)
    file.seek(0)
    return torch.jit.load(file)


WAYS = {"scripted": scripted, "traced": traced, "loaded": loaded}


class Model(nn.Module):
    def __init__(self, compiled: nn.Module) -> None:
        super().__init__()
        self.first, self.compiled = nn.Linear(4, 3), compiled

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(self.first(x))


def loss(y: Tensor) -> Tensor:
    return y.square().mean()


def state_of(model: nn.Module) -> list[Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    held = [(name, id(x), x.data_ptr(), x.dtype, x._version, x.tolist(), x.grad is None) for name, x in tensors]
    return [held, [module.training for module in model.modules()]]


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("compiled", WAYS.values(), ids=WAYS)
def test_a_right_one_inside_of_a_model(compiled: Callable[[nn.Module], Any], mode: Any) -> None:
    torch.manual_seed(0)
    model = Model(compiled(Right()))
    loss(model(X)).backward()
    model.zero_grad()
    calls, before, values = getattr(model.compiled, "calls", 0), state_of(model), model.eval()(X).tolist()
    model.train()
    before, calls = state_of(model), getattr(model.compiled, "calls", 0)
    report = check_module(model, loss, X, mode=mode)
    assert not report.mismatches
    assert {"match"} <= {row.status for row in report} <= {"match", "flat"}
    assert len(report) == 6
    assert any(note.startswith("compiled by torch.jit: compiled;") for note in report.notes)
    assert state_of(model) == before
    assert getattr(model.compiled, "calls", 0) == calls
    assert model.eval()(X).tolist() == values


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("compiled", WAYS.values(), ids=WAYS)
def test_a_wrong_one_inside_of_a_model(compiled: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    report = check_module(Model(compiled(Detached())), loss, X)
    assert {row.name for row in report.mismatches} == {
        "first.weight",
        "first.bias",
        "compiled.linear.weight",
        "compiled.linear.bias",
    }
    assert report.culprit == "compiled"


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("compiled", WAYS.values(), ids=WAYS)
def test_a_model_that_is_one(compiled: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    assert not check_module(compiled(Right()), loss, X[:, :3]).mismatches
    report = check_module(compiled(Detached()), loss, X[:, :3])
    assert {row.name for row in report.mismatches} == {"linear.weight", "linear.bias"}


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2.01 * gradient


class CallsPython(nn.Linear):
    @torch.jit.ignore
    def in_python(self, x):  # type: ignore[no-untyped-def]
        return Wrong.apply(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.in_python(nn.functional.linear(x, self.weight, self.bias))


@pytest.mark.slow
def test_a_function_that_it_calls_in_python_is_named() -> None:
    torch.manual_seed(0)
    report = check_module(Model(scripted(CallsPython(3, 2))), loss, X)
    assert report.culprit == "compiled"
    assert "Function Wrong gives a wrong gradient" in report.notes[0]


class Interrupted(nn.Linear):
    @torch.jit.ignore
    def in_python(self, x):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    def forward(self, x: Tensor) -> Tensor:
        return self.in_python(nn.functional.linear(x, self.weight, self.bias))


def test_ctrl_c_in_its_code_is_no_error_of_its_own() -> None:
    model = Model(scripted(Interrupted(3, 2)))
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        check_module(model, loss, X)
    assert state_of(model) == before


@pytest.mark.slow
def test_frozen_weights_are_constants() -> None:
    torch.manual_seed(0)
    model = Model(torch.jit.freeze(scripted(Right().eval())))
    report = check_module(model, loss, X)
    assert [(row.name, row.status) for row in report] == [("first.weight", "match"), ("first.bias", "match")]


@pytest.mark.slow
def test_faults_are_planted_around_it() -> None:
    torch.manual_seed(0)
    spots = blind_spots(Model(scripted(Right())), loss, X)
    assert {spot.module for spot in spots if spot.found} == {
        "",
        "first",
        "compiled",
        "compiled.linear",
        "compiled.norm",
    }


@pytest.mark.slow
def test_what_a_step_left_in_grad() -> None:
    torch.manual_seed(0)
    model = Model(scripted(Right()))
    for _ in range(3):  # torch.jit optimises what it has seen twice
        model.zero_grad()
        loss(model(X)).backward()
    assert check_module(model, loss, X, gradients="grad").passed
    model.get_parameter("compiled.linear.weight").grad *= 1.01  # type: ignore[operator]
    wrong = check_module(model, loss, X, gradients="grad").mismatches
    assert [row.name for row in wrong] == ["compiled.linear.weight"]


class LooksAtItsDtype(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("a kernel of dtype float32 only")
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.slow_but_for(1)
def test_code_that_is_fixed_to_a_precision() -> None:
    torch.manual_seed(0)
    model = Model(scripted(LooksAtItsDtype(3, 2)))
    with pytest.raises(InvalidRequestError, match=r"'compiled'.*fixed to the precision.*dtype=torch\.float32"):
        check_module(model, loss, X)
    assert not check_module(model, loss, X, dtype=torch.float32).mismatches


class OfItsOwn(nn.Linear):
    """Of a class that no other test compiles: torch.jit keeps what it learns by class."""


def has_learned(module: Any) -> bool:
    """Whether torch.jit has made up a way to run a forward from what it saw in former runs."""
    try:
        return bool(module._c.get_debug_state().execution_plans)
    except RuntimeError:
        return False


def test_torch_jit_learns_nothing_from_a_check() -> None:
    torch.manual_seed(0)
    model = Model(scripted(OfItsOwn(3, 2)))
    assert not check_module(model, loss, X, include="first.bias").mismatches
    assert not has_learned(model.compiled)
    for _ in range(3):
        model(X)
    assert has_learned(model.compiled)
