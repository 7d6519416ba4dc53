"""Notes on a culprit name the file and line to open: of a backward, a forward, a loss function, a hook."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.source import def_line
from torch_gradcheck import Report, check_closure, check_module
from torch_gradcheck.reporting.render.terminal import Page
from torch_gradcheck.reporting.render.text import text
from torch_gradcheck.torch_internals.modules import current_calls

X, T = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(1, -1, 10).view(5, 2)
HERE = "tests/diagnosis/culprit/test_lines.py"


def line_of(function: Any) -> str:
    """The place of a function, read from the source."""
    return f"{HERE}:{def_line(function)}"


@pytest.fixture(autouse=True)
def below_the_root(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(request.config.rootpath)


class Middle(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 3), middle, nn.Linear(3, 2))


def applied(function: Any) -> Middle:
    """A module that fetches `apply` where it runs."""

    def apply(x: Tensor) -> Tensor:
        return function.apply(x)  # type: ignore[no-any-return]

    return Middle(apply)


def checked(middle: nn.Module) -> Report:
    return check_module(network(middle), squared_error, (X, T))


# Functions --------------------------------------------------------------------------------------------------------


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad


class Right(Old):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


class SetUp(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad


class Vjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def vjp(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad


class Inherits(Old):
    pass


class Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.y = Old.apply(ctx.x)
        return ctx.y.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.autograd.grad(ctx.y, ctx.x, grad)[0]


WRAPPED = inspect.unwrap(SetUp.backward)


@pytest.mark.parametrize(
    ("function", "backward"),
    [(Old, Old.backward), (SetUp, WRAPPED), (Vjp, Vjp.vjp), (Inherits, Old.backward)],
    ids=["ctx first", "setup_context, once_differentiable", "vjp", "inherited"],
)
def test_the_backward_of_a_function_is_named(function: Any, backward: Any) -> None:
    report = checked(applied(function))
    name = f"autograd.Function {function.__name__} gives a wrong gradient for x"
    assert f"1 (Middle): {name}, in its backward at {line_of(backward)}; it accounts" in report.notes[0]
    assert report.place == f"in the backward of {function.__name__} at {line_of(backward)}"
    assert report.text(width=200).splitlines()[1] == f"culprit: 1, {report.place}"


def test_a_function_in_a_function_is_named() -> None:
    note = checked(applied(Outer)).notes[0]
    assert f"Function Old gives a wrong gradient for x, in its backward at {line_of(Old.backward)};" in note


def test_a_right_function_is_not_named() -> None:
    report = checked(Middle(Right.apply))
    assert report.passed
    assert HERE not in str(report)


def test_a_function_is_found_where_its_apply_was_fetched_before() -> None:
    """`swish = Swish.apply`, at the head of a file."""
    before = current_calls()
    report = checked(Middle(Old.apply))
    assert line_of(Old.backward) in report.notes[0]
    assert current_calls() == before


@pytest.fixture
def operator() -> Any:
    @torch.library.custom_op("torch_gradcheck_tests::double", mutates_args=())
    def double(x: Tensor, scale: float = 2.0) -> Tensor:
        return scale * x

    return double


def set_up(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.scale = inputs[1]


def three_times(ctx: Any, grad: Tensor) -> Any:
    return 3 * grad, None


def as_scaled(ctx: Any, grad: Tensor) -> Any:
    return ctx.scale * grad, None


def test_the_formula_of_an_operator_is_named(operator: Any) -> None:
    operator.register_autograd(three_times, setup_context=set_up)
    note = checked(Middle(operator)).notes[0]
    name = "operator torch_gradcheck_tests::double gives a wrong gradient for x"
    assert f"1 (Middle): {name}, in its backward at {line_of(three_times)};" in note
    operator.register_autograd(as_scaled, setup_context=set_up)
    assert checked(Middle(operator)).passed


# Forwards and losses ----------------------------------------------------------------------------------------------


class Stops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.detach()


def loss_with_a_stop(y: Tensor, t: Tensor) -> Tensor:
    return ((y - t) * (y - t).detach()).sum()


class LossWithAStop(nn.Module):
    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return loss_with_a_stop(y, t)


def test_the_forward_of_a_module_is_named() -> None:
    report = checked(Stops())
    note = report.notes[1]  # behind the one on the cut
    assert f"1 (Stops): in its own forward at {line_of(Stops.forward)}; it accounts" in note
    assert report.place == f"detached at {HERE}:{def_line(Stops.forward) + 1}"


@pytest.mark.parametrize(
    ("loss", "function"),
    [(loss_with_a_stop, loss_with_a_stop), (LossWithAStop(), LossWithAStop.forward)],
    ids=["function", "module"],
)
def test_the_loss_function_is_named(loss: Any, function: Any) -> None:
    report = check_module(network(nn.Tanh()), loss, (X, T))
    assert report.culprit == "loss_fn"
    assert f"the loss function or closure at {line_of(function)}" in report.notes[1]


def test_a_closure_is_named() -> None:
    model = network(nn.Tanh())

    def closure() -> Tensor:
        return loss_with_a_stop(model(X), T)

    report = check_closure(model, closure)
    assert f"the loss function or closure at {line_of(closure)}" in report.notes[1]


def test_a_module_of_torch_has_no_line() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh()), nn.Linear(3, 2))
    model[1].register_full_backward_hook(functools.partial(_scaled, 2.0))
    note = check_module(model, squared_error, (X, T)).notes[0]
    assert "torch/nn" not in note
    assert f"1 (Sequential): a backward hook of the module at {line_of(_scaled)} changes its gradient" in note


# Hooks ------------------------------------------------------------------------------------------------------------


def doubled(grad: Tensor) -> Tensor:
    return 2 * grad


def watches(grad: Tensor) -> None:
    grad.sum()


def _scaled(factor: float, module: nn.Module, given: Any, put_out: Any) -> Any:
    return tuple(None if each is None else factor * each for each in given)


def _watched(module: nn.Module, given: Any, put_out: Any) -> None:
    pass


def _doubled_before(module: nn.Module, put_out: Any) -> Any:
    return tuple(2 * each for each in put_out)


class Hooked(nn.Module):
    def __init__(self, hook: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.hook = hook

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        if y.requires_grad:
            y.register_hook(self.hook)
        return 2 * y


class Counts:
    """A hook that is an object."""

    def __call__(self, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.parametrize(
    ("hook", "function"),
    [(doubled, doubled), (Counts(), Counts.__call__), (functools.partial(torch.mul, 2), None)],
    ids=["function", "object", "of torch"],
)
def test_a_hook_on_a_tensor_is_named(hook: Any, function: Any) -> None:
    lines, start = inspect.getsourcelines(Hooked.forward)
    registers = f"{HERE}:{start + next(k for k, line in enumerate(lines) if 'register_hook' in line)}"
    report = checked(Hooked(hook))
    at = f" at {line_of(function)}" if function else ""
    assert report.culprit == "1"
    assert f"1 (Hooked): a hook on a tensor{at}, registered at {registers}, changes its gradient;" in report.notes[0]


def test_a_hook_that_only_watches_is_not_blamed() -> None:
    assert checked(Hooked(watches)).passed
    wrong = nn.Sequential(Hooked(watches), Stops())
    assert "hook" not in checked(wrong).notes[0]


@pytest.mark.parametrize("how", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_of_a_module_is_named(how: str) -> None:
    hook = functools.partial(_scaled, 2.0) if how == "register_full_backward_hook" else _doubled_before
    middle = nn.Tanh()
    getattr(middle, how)(hook)
    hooks = [dict(each) for each in (middle._backward_hooks, middle._backward_pre_hooks)]
    report = checked(middle)
    assert report.culprit == "1"
    function = hook.func if isinstance(hook, functools.partial) else hook
    assert f"1 (Tanh): a backward hook of the module at {line_of(function)} changes its gradient" in report.notes[0]
    assert report.place == f"in a backward hook of the module at {line_of(function)}"
    assert [dict(each) for each in (middle._backward_hooks, middle._backward_pre_hooks)] == hooks


def test_a_backward_hook_that_only_watches_is_not_blamed() -> None:
    middle = Stops()
    middle.register_full_backward_hook(_watched)
    note = checked(middle).notes[1]
    assert "hook" not in note
    assert line_of(Stops.forward) in note


def test_hooks_on_a_parameter_are_named() -> None:
    model = network(nn.Tanh())
    model[0].weight.register_hook(doubled)
    model[0].weight.register_hook(lambda grad: None)
    report = check_module(model, squared_error, (X, T))
    here = inspect.getsourcelines(test_hooks_on_a_parameter_are_named)
    line = here[1] + next(k for k, each in enumerate(here[0]) if "lambda" in each)
    places = f"{line_of(doubled)}, {HERE}:{line}"
    assert report.place == f"in a hook at {places}"
    assert report.notes[0] == (
        f"a hook on the parameter 0.weight at {places} changes its gradient; the backward up to there is right"
    )


def test_a_hook_beside_a_wrong_module_does_not_make_the_backward_right() -> None:
    model = network(Middle(Old.apply))
    model[0].weight.register_hook(doubled)
    report = check_module(model, squared_error, (X, T))
    (note,) = [each for each in report.notes if "a hook on the parameter" in each]
    assert "the backward up to there is right" not in note


def test_hooks_on_a_parameter_that_only_watch_are_not_blamed() -> None:
    model = network(Stops())
    model[0].weight.register_hook(watches)
    assert "hook" not in check_module(model, squared_error, (X, T)).notes[0]


# Text -------------------------------------------------------------------------------------------------------------


def test_a_place_is_not_broken_over_two_lines() -> None:
    report = checked(applied(Old))
    for width in range(80, 120, 3):
        assert line_of(Old.backward) in text(report, Page(width))
