"""Equal calls that give the same, or not: from one random state, after another call, in a second backward."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.entry import entry, on_trial
from tests.zoo.functions.case import normal
from tests.zoo.functions.memory import OldSquare
from tests.zoo.functions.state import Dropout, RoundsOtherwise, Stale
from tests.zoo.functions.upstream import CrossEntropyScaledInPlace
from tests.zoo.source import def_line
from torch_gradcheck.contract.repeatable import repeatable

X = normal(3, 4, dtype=torch.float64)


class EachTimeOther(OldSquare):
    """A backward that gives something else each time, whatever the random state."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad) * (1 + next(CALLS))


CALLS = count()


class DrawsBackward(OldSquare):
    """A backward that rounds at random, by torch's own generator."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad) * (1 + torch.rand(()))


class Accumulates(OldSquare):
    """Adds up all gradients that it has ever returned."""

    total = torch.zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        Accumulates.total = Accumulates.total + OldSquare.backward(ctx, grad)
        return Accumulates.total


class Once(OldSquare):
    """Frees what it has kept: a second backward raises, and is told so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, ctx.x = ctx.x, None
        return 2 * x * grad


@pytest.mark.parametrize(
    "function",
    [OldSquare.apply, Dropout.apply, nn.BatchNorm1d(4), torch.relu_],
    ids=["square", "dropout", "batch norm", "in place"],
)
def test_what_equal_calls_agree_on_passes(function: Any) -> None:
    found = entry("repeatable", function, (X,))
    assert (found.status, found.message) == ("passed", "")


def test_a_spread_of_rounding_passes_and_is_stated() -> None:
    found = entry("repeatable", RoundsOtherwise.apply, (X,))
    assert found.status == "passed"
    assert found.message.startswith("two equal calls differ by ")


@pytest.mark.parametrize("function", [EachTimeOther, Accumulates])
def test_backwards_that_differ_are_told_with_entry_and_line(function: Any) -> None:
    found = entry("repeatable", function.apply, (X,))
    assert found.status == "failed"
    assert "the second gives another result: the gradient of x is " in found.message
    line = def_line(function.backward)
    assert f"({function.__name__}.backward at tests/contract/test_repeatable.py:{line})" in found.message


def test_a_second_backward_that_raises_is_told() -> None:
    found = entry("repeatable", Once.apply, (X,))
    assert found.status == "passed"
    assert found.message.startswith("a second backward through the same graph (retain_graph=True) raises TypeError: ")


class Tuned(OldSquare):
    """Another algorithm, a wrong one, in the very first backward."""

    runs = count()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad) * (1 + 1e-3 * (next(Tuned.runs) == 0))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            DrawsBackward,
            "could be rounding: the backward draws random numbers, and gives the same from the same random state only "
            "(DrawsBackward.backward at ",
        ),
        (Tuned, "could be rounding: the first one differs from the later ones (Tuned.backward at "),
    ],
)
def test_a_backward_that_the_report_calls_no_function_fails(function: Any, said: str) -> None:
    Tuned.runs = count()
    _, found = on_trial(lambda trial: (trial.problem.repeated, repeatable(trial)), function.apply, (X,))
    assert found.status == "failed"
    assert found.message.startswith("two equal backwards differ by ")
    assert " of the largest entry of the gradient of x, of which " in found.message
    assert said in found.message


@pytest.mark.parametrize("name", ["layouts", "needs_input_grad", "undefined_grads"])
def test_no_results_of_a_backward_that_is_not_one_function_are_compared(name: str) -> None:
    found = entry(name, lambda x, y: (EachTimeOther.apply(x) * y, x * y), (X, X.clone()))  # type: ignore[no-untyped-call]
    assert (found.status, found.message) == ("not_applicable", "two equal calls differ: see repeatable")


def test_a_call_between_forward_and_backward_shows_what_is_kept_on_the_class() -> None:
    found = entry("repeatable", Stale.apply, (X,))
    assert found.status == "failed"
    assert "after another call, with other arguments, the backward of the first one: the gradient of x" in found.message


def test_a_second_backward_shows_what_the_first_has_written_to() -> None:
    found = entry("repeatable", CrossEntropyScaledInPlace.apply, (X, torch.tensor([0, 3, 1])))
    assert found.status == "failed"
    assert "in a second backward through the same graph (retain_graph=True), the gradient of logits" in found.message


WORKSPACE = torch.zeros(64, dtype=torch.float64)


def in_workspace(x: Tensor) -> Tensor:
    """The numbers of x in memory that the next call uses, too."""
    return WORKSPACE[: x.numel()].view(x.shape).copy_(x)


class OutputInWorkspace(OldSquare):
    """Saves an allocation: the output is in a workspace."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return in_workspace(x * x)


class GradientInWorkspace(OldSquare):
    """Saves another one: autograd takes the gradient over as it is."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return in_workspace(OldSquare.backward(ctx, grad).detach())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (OutputInWorkspace, "a second call, with other arguments, changes what the first has returned: output is "),
        (
            GradientInWorkspace,
            "the backward of another call changes what that of the first has left: the gradient of x",
        ),
    ],
)
def test_what_is_returned_in_a_workspace_is_overwritten(function: Any, said: str) -> None:
    found = entry("repeatable", function.apply, (X,))
    assert found.status == "failed"
    assert found.message.startswith(said)
    part = "forward" if function is OutputInWorkspace else "backward"
    assert f"({function.__name__}.{part} at tests/contract/test_repeatable.py:" in found.message


BUFFERS: dict[Any, Tensor] = {}


def in_buffer(x: Tensor) -> Tensor:
    """The numbers of x in memory that is kept for this shape and dtype."""
    return BUFFERS.setdefault((x.shape, x.dtype), torch.empty_like(x)).copy_(x)


class GradientInBuffer(OldSquare):
    """Keeps the tensor that it returns: autograd copies it for a leaf, and for nothing else."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return in_buffer(OldSquare.backward(ctx, grad).detach())


class ConstantInBuffer(GradientInBuffer):
    """The gradient is another in the second call because what it is given is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return in_buffer(grad * 2)


class SharesZeros(OldSquare):
    """What it returns is kept, and never written to again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ZEROS.setdefault((grad.shape, grad.dtype), torch.zeros_like(grad))


ZEROS: dict[Any, Tensor] = {}


class WritesToItsGradient(OldSquare):
    """The memory of the gradient that it is given is that of the one it returns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.mul_(2)


@pytest.mark.parametrize("function", [GradientInBuffer, ConstantInBuffer])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
def test_a_gradient_in_a_buffer_that_is_kept_is_overwritten(function: Any, inside: bool) -> None:
    run = (lambda x: function.apply(x.sin()).exp()) if inside else function.apply
    found = entry("repeatable", run, (X,))
    said = f"the backward of another call changes a gradient that the backward of {function.__name__} has returned: it "
    assert found.status == "failed"
    assert found.message.startswith(said)
    assert f"({function.__name__}.backward at tests/contract/test_repeatable.py:" in found.message


@pytest.mark.parametrize("function", [SharesZeros, WritesToItsGradient])
def test_memory_that_no_other_backward_writes_to_may_be_shared(function: Any) -> None:
    found = entry("repeatable", lambda x: function.apply(x.sin()) * function.apply(x.cos()), (X,))
    assert (found.status, found.message) == ("passed", "")
