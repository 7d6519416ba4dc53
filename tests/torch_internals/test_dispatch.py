"""What modes and transforms are for: float64 all the way, recording J, and ending what Ctrl-C left in force."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch as python_dispatch

from torch_gradcheck.torch_internals.dispatch import (
    DispatchMode,
    below_modes,
    current_modes,
    dispatch_modes,
    dispatch_modes_in_force,
    function_modes_in_force,
    modes_disabled,
    pop_function_modes_down_to,
    pop_transforms_down_to,
    set_dispatch_modes,
    transforms_in_force,
    vmap_or_nothing,
    without_rule_of_vmap,
)
from torch_gradcheck.torch_internals.missing import MissingInTorchError


class Names(DispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operations_of_a_backward_too() -> None:
    """Precision, recording and rounding modes work below autograd."""
    x = torch.ones(2, requires_grad=True)
    with Names() as mode:
        x.sin().sum().backward()
    assert "aten.sin.default" in mode.names
    assert "aten.cos.default" in mode.names  # of the backward


@pytest.mark.slow
def test_a_dispatch_mode_does_not_import_the_compiler() -> None:
    """`_should_skip_dynamo`: the import takes two seconds, longer than most checks."""
    script = """
import sys, torch
from torch_gradcheck.torch_internals.dispatch import DispatchMode
class Mode(DispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))
with Mode():
    torch.ones(2).sin()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_torch_without_dispatch_modes_is_named_where_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(python_dispatch, "TorchDispatchMode")
    with pytest.raises(MissingInTorchError, match=r"_python_dispatch\.TorchDispatchMode"):
        Names()


def test_current_modes_are_those_of_the_caller_the_outermost_first() -> None:
    """A record of J holds what the caller's modes made of it."""
    with Names() as outer, Names() as inner:
        assert current_modes() == [outer, inner]
    assert current_modes() == []


def test_no_mode_is_told_of_what_is_computed_below_modes_and_each_stays_in_force() -> None:
    with Names() as mode:
        with below_modes():
            torch.ones(2).sin()
            assert current_modes() == [mode]
        torch.ones(2).cos()
    assert "aten.sin.default" not in mode.names
    assert "aten.cos.default" in mode.names


def test_no_mode_is_in_force_inside_modes_disabled_and_all_are_again_after_it() -> None:
    """A record of J is evaluated apart from the caller's modes."""
    with Names() as outer, Names() as inner:
        with modes_disabled():
            assert current_modes() == []
            torch.ones(2).sin()
        assert current_modes() == [outer, inner]
    assert not inner.names


def test_dispatch_modes_that_an_interrupt_left_are_ended() -> None:
    with Names() as mode:
        Names().__enter__()
        Names().__enter__()
        assert dispatch_modes_in_force() == 3
        set_dispatch_modes([mode])
        assert dispatch_modes() == [mode]


def test_dispatch_modes_that_an_interrupt_ended_are_put_back() -> None:
    with Names() as outer, Names() as inner:
        set_dispatch_modes([])
        assert dispatch_modes_in_force() == 0
        set_dispatch_modes([outer, inner])
        assert dispatch_modes() == [outer, inner]


def test_a_mode_of_the_package_ends_where_an_interrupt_has_ended_it() -> None:
    """Torch raises RuntimeError there, or ends another mode, and nobody would hear of the interrupt."""
    with Names() as outer:
        with Names():
            set_dispatch_modes([outer])
        assert dispatch_modes() == [outer]
        with Names():
            set_dispatch_modes([])
    assert dispatch_modes_in_force() == 0


def test_modes_that_an_interrupt_left_disabled_are_not_put_back_later() -> None:
    """As a generator would, when it is let go."""
    with Names() as mode:
        disabled = modes_disabled()
        disabled.__enter__()
        set_dispatch_modes([mode])
        del disabled
        assert dispatch_modes() == [mode]


class Functions(TorchFunctionMode):
    pass


def test_function_modes_that_an_interrupt_left_are_ended() -> None:
    with Functions():
        count = function_modes_in_force()
        Functions().__enter__()
        assert function_modes_in_force() == count + 1
        pop_function_modes_down_to(count)
        assert function_modes_in_force() == count


def nested(monkeypatch: pytest.MonkeyPatch, transform: Any) -> int:
    """How many transforms are in force in a function under two of them."""
    seen: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(transforms_in_force())
        return x.sum()

    torch.vmap(transform(function))(torch.ones(2, 3))
    return seen[0]


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
def test_transforms_are_counted(monkeypatch: pytest.MonkeyPatch, transform: Any) -> None:
    assert nested(monkeypatch, transform) == 2
    assert transforms_in_force() == 0


LEFT_IN_FORCE = {
    "vmap": ["vmap"],
    "grad": ["grad"],
    "jvp": ["jvp"],
    "grad in vmap": ["vmap", "grad"],
    "jvp in grad in vmap": ["vmap", "grad", "jvp"],
}


@pytest.mark.parametrize("names", LEFT_IN_FORCE.values(), ids=LEFT_IN_FORCE)
def test_transforms_that_an_interrupt_left_are_ended(names: list[str]) -> None:
    """In a transform that never ends no tensor can be made to require a gradient."""
    functorch = torch._C._functorch
    begin = {
        "vmap": lambda: functorch._vmap_increment_nesting(2, "error"),
        "grad": functorch._grad_increment_nesting,
        "jvp": functorch._jvp_increment_nesting,
    }
    for name in names:
        begin[name]()
    assert transforms_in_force() == len(names)
    pop_transforms_down_to(0)
    assert transforms_in_force() == 0
    x = torch.ones(2, requires_grad=True)
    assert torch.equal(
        torch.vmap(torch.func.grad(lambda y: (y * y).sum()))(x.detach().reshape(2, 1)), torch.full((2, 1), 2.0)
    )


def test_nothing_is_ended_where_nothing_is_in_force() -> None:
    pop_transforms_down_to(0)
    set_dispatch_modes([])
    pop_function_modes_down_to(0)


def test_vmap_refuses_what_it_would_loop_over() -> None:
    """The engine's own loop is faster, and gives no warning."""
    x = torch.tensor([[2.0, 1.0, 3.0], [1.0, 2.0, 0.0]])

    def histogram(row: torch.Tensor) -> torch.Tensor:
        return torch.histc(row, bins=2)

    with vmap_or_nothing(), pytest.raises(RuntimeError, match="fallback"):
        torch.vmap(histogram)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.vmap(histogram)(x).shape == (2, 2)  # the switch is back


def test_a_torch_without_these_switches_is_checked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """They serve one case of Ctrl-C; every check reads them."""
    monkeypatch.delattr(torch._C, "_len_torch_dispatch_stack")
    monkeypatch.delattr(torch._C, "_len_torch_function_stack")
    monkeypatch.delattr(torch._C, "_functorch")
    assert dispatch_modes_in_force() == function_modes_in_force() == transforms_in_force() == 0
    with vmap_or_nothing():
        pop_transforms_down_to(0)


def test_an_operation_that_vmap_could_only_loop_over_is_named() -> None:
    @torch.library.custom_op("torch_gradcheck_tests::looped", mutates_args=())
    def looped(x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    with vmap_or_nothing(), pytest.raises(RuntimeError) as error:
        torch.vmap(looped)(torch.ones(2, 3))
    assert without_rule_of_vmap(error.value) == "torch_gradcheck_tests::looped"
    assert without_rule_of_vmap(RuntimeError("another")) is None
